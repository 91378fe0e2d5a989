"""A comparison runs each combination once, keeps to its bytes, and says what it left out."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import contents, words

from fedtuners.comparison import averaged, cells, group_of

Verb = Callable[..., tuple[int, str, str]]
OVER = ("--over", "strategy=fed_sb,fedavg_lora", "--over", "adapter=lora", "--over", "seed=0,1")


def test_runs_once_resumes_and_names_what_cannot_run(
    tiny: Path, verb: Verb, tmp_path: Path
) -> None:
    chosen = words(tiny, "adapter.rank=2", "federation.rounds=1")

    code, _, err = verb("compare", *OVER, *chosen, "--out", tmp_path / "out")
    first = contents(tmp_path / "out" / "runs")
    again, _, _ = verb("compare", *OVER, *chosen, "--out", tmp_path / "out")

    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    page = (tmp_path / "out" / "report.html").read_text()
    assert code == again == 0
    assert [(row["strategy"], row["seed"]) for row in rows] == [
        ("fedavg_lora", "0"),
        ("fedavg_lora", "1"),
    ]
    assert "left out strategy=fed_sb adapter=lora seed=0" in err
    assert "choose adapter=lora_sb" in page
    assert " ± " in page
    assert contents(tmp_path / "out" / "runs") == first


def test_equal_bytes_stay_below_the_budget(tiny: Path, verb: Verb, tmp_path: Path) -> None:
    chosen = words(tiny, "adapter=lora", "adapter.rank=2")

    code, _, _ = verb(
        *("compare", "--over", "strategy=fedavg_lora,ffa_lora", "--bytes", "90e3"),
        *(*chosen, "--out", tmp_path / "out"),
    )

    rows = {
        row["strategy"]: row for row in csv.DictReader((tmp_path / "out" / "results.csv").open())
    }
    assert code == 0
    assert all(int(row["total"]) <= 90_000 * 1.01 for row in rows.values())
    assert int(rows["ffa_lora"]["rounds"]) > int(rows["fedavg_lora"]["rounds"])


def test_cells_are_all_combinations() -> None:
    assert cells(["a=1,2", "seed=0,1"]) == [
        ("a=1", "seed=0"),
        ("a=1", "seed=1"),
        ("a=2", "seed=0"),
        ("a=2", "seed=1"),
    ]
    assert group_of(("a=1", "seed=1")) == "a=1"


def test_bands_are_one_standard_deviation_around_the_mean() -> None:
    lines, bands = averaged({"x": [[(0, 1.0), (1, 2.0)], [(0, 3.0), (1, 4.0)]]})

    assert lines["x"] == [(0, 2.0), (1, 3.0)]
    assert bands["x"][0] == pytest.approx((0, 2 - 2**0.5, 2 + 2**0.5))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--over", "strategy="], "write key=first,second"),
        (["--over", "strategy=nothing"], "none of the combinations"),
        (["--over", "seed=0", "--bytes", "10"], "none of the combinations"),
        ([], "--over"),
    ],
)
def test_wrong_input_is_refused(
    verb: Verb, tmp_path: Path, wrong: list[str], sentence: str
) -> None:
    code, _, err = verb("compare", *wrong, "--out", tmp_path / "out")

    assert code == 2
    assert sentence in err
    assert not (tmp_path / "out" / "results.csv").exists()
