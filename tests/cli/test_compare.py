"""A comparison runs each combination once, keeps to its bytes, and says what it left out."""

import csv
import errno
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from scipy.stats import ttest_rel
from small_runs import contents, words

from fedtuners.baselines import BASELINES, steps_of
from fedtuners.cells import cells, label, part, with_baselines
from fedtuners.cli.compare import largest, write_all
from fedtuners.comparison import Table, differences, within
from fedtuners.comparison_page import averaged
from fedtuners.config import compose
from fedtuners.paired import paired
from fedtuners.plots import bars, figure
from fedtuners.results import Run, read_run
from server_app.folder import RunFolder

Verb = Callable[..., tuple[int, str, str]]
CONF = Path(__file__).resolve().parents[2] / "conf"
OVER = ("--over", "strategy=fed_sb,fedavg_lora", "--over", "adapter=lora", "--over", "seed=0,1")


def table_of(out: Path) -> list[dict[str, str]]:
    """The rows of a comparison's results.csv."""
    return list(csv.DictReader((out / "results.csv").open()))


def test_runs_once_resumes_and_names_what_cannot_run(
    tiny: Path, verb: Verb, tmp_path: Path
) -> None:
    chosen = words(tiny, "adapter.rank=2", "federation.rounds=1")

    code, _, err = verb("compare", *OVER, *chosen, "--out", tmp_path / "out")
    first = contents(tmp_path / "out" / "runs")
    again, _, _ = verb("compare", *OVER, *chosen, "--out", tmp_path / "out")

    page = (tmp_path / "out" / "report.html").read_text()
    assert code == again == 0
    assert [(row["strategy"], row["seed"]) for row in table_of(tmp_path / "out")] == [
        ("fedavg_lora", "0"),
        ("fedavg_lora", "1"),
    ]
    assert "left out strategy=fed_sb adapter=lora seed=0" in err
    assert "choose adapter=lora_sb" in page
    assert " ± " in page
    assert contents(tmp_path / "out" / "runs") == first


@pytest.fixture(scope="module")
def compared(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two cases, two splits and two seeds with both baselines."""
    from fedtuners.cli.main import main

    out = tmp_path_factory.mktemp("compared") / "out"
    cases = (
        "--case",
        "strategy=fedavg_lora adapter=lora",
        "--case",
        "strategy=ffa_lora adapter=lora",
    )
    over = ("--over", "partition=iid,size", "--over", "seed=0,1", "--within", "9e3,1e9")
    chosen = words(tiny, "adapter.rank=1", "federation.rounds=1", "train.steps=1")
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *cases, *over, "--baselines", *chosen, "--out", str(out)])
    assert stopped.value.code == 0
    return out


def test_baselines_stand_beside_each_adapter_setting_and_seed(compared: Path) -> None:
    rows = table_of(compared)

    alone = next((compared / "runs").glob("strategy=alone*partition=size*seed=1"))
    run = read_run(str(alone / "latest"))
    scores = [client[run.summary["metric"]] for client in run.clients(1)]
    assert Counter(row["strategy"] for row in rows) == dict.fromkeys(
        ("fedavg_lora", "ffa_lora", "alone", "centralised"), 4
    )
    assert {row["total"] for row in rows if row["strategy"] in BASELINES} == {"0"}
    assert len(scores) == 3
    assert run.summary["final"] == pytest.approx(sum(scores) / 3)
    assert run.summary["final"] < run.summary["initial"]


def test_parquet_says_what_the_csv_says(compared: Path) -> None:
    rows = table_of(compared)

    table = parquet.read_table(compared / "results.parquet")

    assert table.column_names == list(rows[0])
    assert table.num_rows == len(rows)
    assert table["seed"].to_pylist() == [int(row["seed"]) for row in rows]
    assert table["final"].to_pylist() == pytest.approx([float(row["final"]) for row in rows])


def test_the_page_shows_settings_baselines_clients_and_splits(compared: Path) -> None:
    page = (compared / "report.html").read_text()
    text = (compared / "results.md").read_text()

    for words_ in ("Means over seeds: iid", "Means over seeds: size", "Paired differences"):
        assert words_ in page
        assert words_ in text
    assert page.count("<svg") == 2 * 4  # by round, against bytes, clients alone, split
    assert "clients alone, from the lowest score up" in page
    assert "training rows" in page
    assert "script" not in page
    assert "mean of the settings" in text


def test_equal_bytes_stay_below_the_budget(tiny: Path, verb: Verb, tmp_path: Path) -> None:
    chosen = words(tiny, "adapter=lora", "adapter.rank=2")

    code, _, _ = verb(
        *("compare", "--over", "strategy=fedavg_lora,ffa_lora,fedex_lora", "--bytes", "60e3"),
        *(*chosen, "train.steps=1", "federation.fraction=0.67", "--out", tmp_path / "out"),
    )

    rows = {row["strategy"]: row for row in table_of(tmp_path / "out")}
    assert code == 0
    assert all(int(row["total"]) <= 60_000 * 1.01 for row in rows.values())
    assert int(rows["ffa_lora"]["rounds"]) > int(rows["fedavg_lora"]["rounds"])


def test_rounds_are_the_most_that_fit() -> None:
    for limit in range(1, 40):
        assert largest(lambda n, limit=limit: n <= limit) == limit  # type: ignore[misc]


def test_the_score_within_a_budget_is_the_last_before_it(fedex: Path) -> None:
    run = read_run(str(fedex))
    total, metric = run.summary["bytes"]["total"], run.summary["metric"]
    by_round = [line[metric] for line in run.rounds]

    assert within(run, total + 1) == by_round[-1]
    assert within(run, total - 1) == by_round[-2]
    assert within(run, run.summary["bytes"]["initialisation"] - 1) is None


def test_other_settings_are_not_mixed_into_a_table(tiny: Path, verb: Verb, tmp_path: Path) -> None:
    chosen = words(tiny, "adapter=lora", "adapter.rank=2", "federation.rounds=1", "train.steps=1")
    verb("compare", "--over", "strategy=ffa_lora", *chosen, "--out", tmp_path / "out")
    before = contents(tmp_path / "out")

    code, _, err = verb(
        *("compare", "--over", "strategy=ffa_lora", *chosen, "train.batch_size=2"),
        *("--out", tmp_path / "out"),
    )

    assert code == 2
    assert "with other settings: choose another --out" in err
    assert contents(tmp_path / "out") == before


def test_cells_are_all_combinations() -> None:
    assert cells(["a=1,2", "seed=0,1"]) == [
        ("a=1", "seed=0"),
        ("a=1", "seed=1"),
        ("a=2", "seed=0"),
        ("a=2", "seed=1"),
    ]
    assert cells(["seed=0"], ["a=1 b=2", "a=3"]) == [("a=1", "b=2", "seed=0"), ("a=3", "seed=0")]


def test_words_are_seed_method_or_setting() -> None:
    cell = ("strategy=fed_sb", "adapter.rank=8", "partition.alpha=0.1", "data=gsm8k", "seed=1")

    assert part(cell, "seed") == ("seed=1",)
    assert label(part(cell, "method")) == "fed_sb rank=8"
    assert label(part(cell, "setting")) == "partition.alpha=0.1 data=gsm8k"
    assert label(("train.batch_size=8",)) != label(("start.batch_size=8",))
    assert with_baselines([("strategy=a", "seed=0"), ("strategy=b", "seed=0")])[2:] == [
        ("strategy=alone", "seed=0"),
        ("strategy=centralised", "seed=0"),
    ]


def test_baselines_take_the_steps_of_the_federation() -> None:
    chosen = ["federation.clients=30", "federation.fraction=0.1", "federation.rounds=8"]
    some = compose([*chosen, "train.steps=20"], CONF)
    epochs = compose([*chosen, "train.epochs=2", "train.batch_size=8"], CONF)

    assert steps_of(some, rows=7) == 8 * 20 * 3 / 30
    assert steps_of(epochs, rows=79) == 8 * 2 * 10 * 3 / 30
    assert steps_of(compose([], CONF), rows=7) == 8 * 20


def test_the_paired_test_is_student_s() -> None:
    ours, theirs = [0.5, 0.7, 0.9, 0.8], [0.4, 0.5, 0.9, 0.6]
    oracle = ttest_rel(ours, theirs)

    found = paired([a - b for a, b in zip(ours, theirs, strict=True)])

    assert found.p == pytest.approx(oracle.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval()))
    assert paired([0.1, 0.2]).p is None
    assert paired([0.1, 0.2]).low is None
    assert paired([0.1, 0.1, 0.1]).p is None


def fake(final: float) -> Run:
    """A run of which only the score is known."""
    return Run(Path(), None, {"final": final})  # type: ignore[arg-type]


def test_differences_pair_equal_seeds_and_settings() -> None:
    shift = {"iid": 0.1, "size": 0.3}
    runs = {
        (f"strategy={s}", f"partition={p}", f"seed={k}"): fake(k + (shift[p] if s == "b" else 0))
        for s in "ab"
        for p in shift
        for k in (0, 2, 1)
        if (s, p, k) != ("b", "size", 2)
    }

    table = differences("last score", runs, lambda run: float(run.summary["final"]))

    assert [row[:4] for row in table.rows] == [
        ["b", "iid", 3, "+0.100"],
        ["b", "size", 2, "+0.300"],
        ["b", "mean of the settings", 2, "+0.200"],
    ]
    assert table.rows[1][4:] == ["", ""]


def test_bands_are_one_standard_deviation_around_the_mean() -> None:
    lines, bands = averaged({"x": [[(0, 1.0), (1, 2.0)], [(0, 3.0), (1, 4.0)]]})

    assert lines["x"] == [(0, 2.0), (1, 3.0)]
    assert bands["x"][0] == pytest.approx((0, 2 - 2**0.5, 2 + 2**0.5))


def test_many_names_of_a_split_are_summed_up() -> None:
    drawn = bars({f"speaker {index}": [1, 2] for index in range(40)}, "client", "rows")

    assert "31 others" in drawn
    assert "speaker 8" in drawn
    assert "speaker 9" not in drawn


def test_bytes_far_apart_are_drawn_in_powers_of_ten() -> None:
    near = figure({"lora": [(1, 0.1), (2, 0.2)]}, "megabytes", "score", levels={"alone": 0.5})
    far = figure({"lora": [(0, 0.0), (0.1, 0.1), (50, 0.2)]}, "megabytes", "score")

    assert ">alone<" in near
    assert ">0.1<" in far
    assert ">10<" in far
    assert ">20<" not in far


def test_markdown_tables_have_their_lines() -> None:
    text = Table("Title", ("a", "b"), [(1, 2)], "note").markdown()

    assert text.splitlines()[-3:] == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--over", "strategy="], "write key=first,second"),
        (["--over", "strategy=nothing"], "none of the combinations"),
        (["--over", "strategy=nothing"], "choose from"),
        (["--over", "train.stps=1,2", "--over", "seed=0,1,2"], "unknown key 'train.stps'"),
        (["--over", "train.steps=many"], "train.steps"),
        (["--case", "strategy"], "write key=value"),
        (["--over", "seed=0", "--bytes", "10"], "none of the combinations"),
        (["--over", "seed=0", "--bytes", "9e9", "--baselines"], "a baseline sends no bytes"),
        (["--over", "strategy=alone,fed_sb", "--bytes", "9e9"], "use --within instead"),
        (["--over", "data.labels=[a,b]"], "use --case for each"),
        (["--over", "seed=0,1", "data=/no/rows.jsonl", "data.max_length=64"], "/no/rows.jsonl"),
        ([], "--over"),
    ],
)
def test_wrong_input_is_refused(
    verb: Verb, tmp_path: Path, wrong: list[str], sentence: str
) -> None:
    code, _, err = verb("compare", *wrong, "--out", tmp_path / "out")

    assert code == 2
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "results.csv").exists()


@pytest.mark.parametrize("budget", ["inf", "nan", "0", "-5"])
@pytest.mark.parametrize("option", ["--bytes", "--within"])
def test_no_number_of_bytes_is_refused(
    capsys: pytest.CaptureFixture[str], option: str, budget: str
) -> None:
    from fedtuners.cli.main import main

    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--over", "seed=0", f"{option}={budget}"])

    assert stopped.value.code == 2
    assert f"{budget} is no number of bytes above 0" in capsys.readouterr().err


def test_a_full_disk_ends_a_comparison_at_once(
    tiny: Path, verb: Verb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def full(self: RunFolder, lines: list[dict[str, Any]]) -> None:
        begun.append(self.path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, "append_metrics", full)
    chosen = words(tiny, "strategy=fedavg_lora", "adapter=lora")
    code, _, err = verb("compare", "--over", "seed=0,1", *chosen, "--out", tmp_path / "out")

    assert code != 0
    assert "make room" in err
    assert len(begun) == 1


def test_an_empty_file_is_one_sentence_and_earlier_results_stay(
    compared: Path, tiny: Path, verb: Verb, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    before = contents(compared)
    chosen = [w for w in words(tiny, "adapter=lora") if not w.startswith("data=")]

    code, _, err = verb(
        *("compare", "--over", "strategy=ffa_lora,fedavg_lora", *chosen),
        *(f"data={tmp_path / 'empty.jsonl'}", "--out", compared),
    )

    assert code == 2
    assert "empty" in err
    assert len(err.strip().splitlines()) == 1
    assert {k: v for k, v in contents(compared).items() if k in before} == before


@pytest.mark.parametrize("place", ["/proc/comparison", "file/comparison"])
def test_a_place_that_cannot_be_written_is_one_sentence(
    verb: Verb, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("mine")

    code, _, err = verb("compare", "--over", "seed=0", "--out", tmp_path / place)

    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_the_earlier_tables(
    compared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(compared)
    run = read_run(str(next((compared / "runs").glob("strategy=ffa*")) / "latest"))
    monkeypatch.setattr(Path, "write_bytes", full)

    with pytest.raises(OSError, match="No space left"):
        write_all(compared, "title", {("strategy=ffa_lora",): run}, {}, [])

    assert contents(compared) == before


def full(path: Path, content: bytes) -> int:
    """What writing does on a full disk."""
    raise OSError(28, "No space left on device", str(path))
