"""`evaluate` scores base and adapter as the run itself did, and other rows by the run's prompt."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import contents

Verb = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", ["fed_sb", "fedex", "classifier"])
def test_base_and_adapter_have_the_scores_of_the_first_and_the_last_round(
    name: str, request: pytest.FixtureRequest, verb: Verb, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(name)
    before = contents(folder)

    code, out, _ = verb("evaluate", folder, "--json", tmp_path / "scores.json")

    summary = json.loads((folder / "summary.json").read_text())
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert code == 0
    assert "95 % interval" in out
    if name != "fed_sb":  # which starts from an update estimate, not from nothing
        assert scores["base"]["value"] == pytest.approx(summary["initial"], abs=1e-5)
    assert scores["adapter"]["value"] == pytest.approx(summary["final"], abs=1e-5)
    assert scores["adapter"]["low"] <= scores["adapter"]["value"] <= scores["adapter"]["high"]
    assert contents(folder) == before


def test_every_row_of_another_file_counts(
    fed_sb: Path, tiny: Path, verb: Verb, tmp_path: Path
) -> None:
    code, _, _ = verb(
        *("evaluate", fed_sb, "data.test_rows=7", "data.train_rows=5"),
        *("--data", tiny / "rows.jsonl", "--side", "adapter"),
        *("--json", tmp_path / "scores.json"),
    )

    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert code == 0
    assert scores["adapter"]["count"] == 60
    assert list(scores) == ["adapter"]


def test_an_exported_lora_scores_as_the_run(
    fedex: Path, tiny: Path, verb: Verb, tmp_path: Path
) -> None:
    code, _, _ = verb(
        *("evaluate", fedex / "lora", f"data={tiny / 'rows.jsonl'}", "data.metric=loss"),
        *("data.max_length=24", "data.max_new_tokens=4", "--json", tmp_path / "scores.json"),
    )

    summary = json.loads((fedex / "summary.json").read_text())
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert code == 0
    assert scores["adapter"]["value"] == pytest.approx(summary["final"], abs=1e-4)


def test_another_split_of_the_demo(tmp_path: Path, verb: Verb) -> None:
    code, _, _ = verb(
        *("evaluate", "demo", "data=demo", "data.test_rows=6", "data.max_new_tokens=4"),
        *("data.train_rows=10", "--split", "old", "--json", tmp_path / "scores.json"),
    )

    written = json.loads((tmp_path / "scores.json").read_text())
    assert code == 0
    assert written["scores"]["base"]["count"] == 6
    assert written["rows"] == "demo, old rows"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["{run}", "--data", "nowhere.jsonl"], "no such file"),
        (["{run}", "--data", "{empty}"], "empty"),
        (["{run}", "--data", "{columns}"], "has no column"),
        (["{run}", "--split", "old"], "has no splits"),
        (["{run}", "train.steps=3"], "only data"),
        (["{run}", "data.nothing=3"], "nothing"),
        (["/nowhere/at/all", "data=demo"], "not a folder"),
        (["demo", "data=demo", "--side", "adapter"], "has no adapter"),
        (["{foreign}", "data=demo"], "another base model"),
    ],
)
def test_wrong_input_gives_one_sentence_and_changes_nothing(
    fed_sb: Path, verb: Verb, tmp_path: Path, wrong: list[str], sentence: str
) -> None:
    before = contents(fed_sb)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "columns.jsonl").write_text('{"a": "b"}\n{"a": "c"}\n')
    shutil.copytree(fed_sb / "lora", tmp_path / "foreign")
    config = json.loads((tmp_path / "foreign" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "demo"
    (tmp_path / "foreign" / "adapter_config.json").write_text(json.dumps(config))
    places = {
        "{run}": fed_sb,
        "{empty}": tmp_path / "empty.jsonl",
        "{columns}": tmp_path / "columns.jsonl",
        "{foreign}": tmp_path / "foreign",
    }

    code, _, err = verb("evaluate", *(str(places.get(word, word)) for word in wrong))

    assert code == 2
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert contents(fed_sb) == before
