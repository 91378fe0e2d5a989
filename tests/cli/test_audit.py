"""Every form of `fedtuners audit`: the canaries, a run, an adapter's folder, rows of one's own."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import contents, finished

from fedtuners.demo import rows
from fedtuners.privacy import audit

Verb = Callable[..., tuple[int, str, str]]


def auc(out: str) -> float:
    return float(re.findall(r"AUC (\d\.\d+)", " ".join(out.split()))[0])


def commands(folder: Path, seed: int) -> Path:
    """A file of the demo's new commands; another seed has others."""
    lines = [json.dumps(row) for row in rows("train", 30, seed)]
    (folder / f"{seed}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / f"{seed}.jsonl"


def test_the_canaries_refute_what_is_broken_and_nothing_else(
    verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")

    code, out, _ = verb("audit")

    verdicts = [line.split("│")[-2].strip() for line in out.splitlines() if "│" in line]
    assert code == 0
    assert verdicts == ["not refuted"] * 2 + ["refuted"] * (len(audit.TRAININGS) - 2)


@pytest.mark.parametrize("name", ["halved noise", "clean"])
def test_a_wrong_verdict_is_a_failure(
    verb: Verb, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A mechanism that is broken where it should be clean, or the other way round."""
    other = "clean" if name == "halved noise" else "halved noise"
    monkeypatch.setattr(audit, "TRAININGS", {other: replace(audit.TRAININGS[name])})
    code, _, _ = verb("audit", "--canaries", 1000)
    assert code == 1


@pytest.mark.parametrize("name", ["fed_sb", "fedex", "classifier"])
def test_a_run_has_a_score_and_stays_as_it_was(
    name: str, request: pytest.FixtureRequest, verb: Verb
) -> None:
    folder = request.getfixturevalue(name)
    before = contents(folder)

    code, out, _ = verb("audit", folder, "--rows", 20)

    assert code == 0
    assert 0 <= auc(out) <= 1
    assert contents(folder) == before


def test_what_was_learnt_by_heart_shows(verb: Verb, tmp_path: Path) -> None:
    own, others = commands(tmp_path, seed=1), commands(tmp_path, seed=2)
    chosen = (
        *(f"data={own}", "data.metric=loss", "strategy=fedavg_lora", "adapter=lora"),
        *("federation.clients=2", "federation.rounds=2", "train.steps=15", "train.batch_size=13"),
        *("train.learning_rate=2e-2", "evaluation.every=9", "data.max_length=128"),
    )
    run = finished(tmp_path, list(chosen))

    _, of_run, _ = verb("audit", run, "--others", others)
    _, of_lora, _ = verb(
        *("audit", run / "lora", f"data={own}", "data.max_length=128", "--others", others)
    )
    _, of_strangers, _ = verb("audit", run, f"data={commands(tmp_path, 3)}", "--others", others)

    assert auc(of_run) > 0.75
    assert auc(of_lora) == pytest.approx(auc(of_run), abs=0.01)
    assert auc(of_strangers) < 0.7


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["nowhere"], "is no run folder"),
        (["{run}", "--others", "nowhere.jsonl"], "no such file"),
        (["{run}", "train.steps=3"], "only data"),
        (["{run}/lora", "data=nowhere.jsonl"], "no such file"),
    ],
)
def test_wrong_input_gives_one_sentence(
    fed_sb: Path, verb: Verb, wrong: list[str], sentence: str
) -> None:
    code, _, err = verb("audit", *(word.replace("{run}", str(fed_sb)) for word in wrong))
    assert code == 2
    assert sentence in err
