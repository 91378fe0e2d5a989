"""Wrong input to every verb: one sentence that names the thing and the fix, and nothing changed."""

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_runs import contents, words
from transformers import AutoConfig

Verb = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]

LORA = ("strategy=fedavg_lora", "adapter=lora")
RUNS = [  # (words of a run or a plan, what the sentence says)
    (["data={here}/nowhere.jsonl"], "nowhere.jsonl: no such file"),
    (["data={here}/empty.jsonl"], "empty.jsonl holds no rows"),
    (["data={here}/columns.jsonl"], "no column instruction, output; it has a: set data.prompt"),
    (["data={here}/half.jsonl"], "column output is empty in some rows"),
    (["data={here}/broken.jsonl"], "line 2: not valid JSON"),
    (["data={here}/rows.xlsx"], "files of kind '.xlsx' are not read; use one of .csv"),
    (["data={here}/lists.jsonl"], "column output holds lists or objects: write its values as text"),
    (
        ["data={here}/groups.jsonl", "data.group=user", "partition=natural"],
        "column user is empty in some rows: fill it, drop them, or use partition=iid",
    ),
    (["partition=natural", "data.group=user"], "partition.column=user is no column; there are"),
    (["federation.clients=100"], "100 clients cannot share 54 rows; lower federation.clients"),
    (["model={here}/nowhere"], "nowhere is not a folder with a model in it"),
    (["model=no/where"], "model.name=no/where: its config.json is neither in a folder nor"),
    ([*LORA, "adapter.rank=99"], "rank 99 does not fit model.layers.0."),
    ([*LORA, "adapter.rank=0"], "rank 0 of lora must be at least 1"),
    (["adapter=lora"], "choose adapter=lora_sb"),
    (["strategy=fedsb"], "no choice 'fedsb'; choose from"),
    (["federation.round=2"], "unknown key"),
    (["federation.rounds=0"], "federation.rounds=0 must be above 0"),
    (["train.micro_batch=0"], "train.micro_batch=0 must be above 0"),
    (["model=hf"], "model.name is empty: give a hub name or a folder"),
    (["data.max_length=100"], "lower data.max_length"),
]
OTHER_LABELS = ["data.task=classification", "data.metric=accuracy", "data.label=label"]
FINISHED = [  # (words of a verb after a run, what the sentence says)
    (["report", "nowhere"], "nowhere is no run folder: give a path"),
    (["report", "{unfinished}"], "has no summary.json: the run has not finished"),
    (["report", "{damaged}"], "metrics.jsonl is damaged"),
    (["report", "{blank}"], "metrics.jsonl holds no round"),
    (["evaluate", "/no/where/at/all", "data=demo"], "is not a folder with a model in it"),
    (["evaluate", "no/where", "data=demo"], "model.name=no/where could not be loaded"),
    (["evaluate", "{run}", "--data", "{here}/nowhere.jsonl"], "no such file or folder"),
    (["evaluate", "{run}", "--data", "{here}/empty.jsonl"], "empty.jsonl holds no rows"),
    (["evaluate", "{run}", "--data", "{here}/columns.jsonl"], "has no column instruction"),
    (["evaluate", "{run}", "train.steps=3"], "only data and data.… can be set here"),
    (["evaluate", "{run}", "--batch-size", "0"], "--batch-size 0 must be at least 1"),
    (["evaluate", "{foreign}"], "was made for another base model than"),
    (["evaluate", "{orphan}"], "gone is not a folder with a model in it"),
    (["evaluate", "{run}/adapter", "data={here}/columns.jsonl"], "has no column instruction"),
    (["generate", "nowhere", "text"], "nowhere is no run folder"),
    (["generate", "{run}", "a=1", "b=2"], "give instruction=…"),
    (["generate", "{run}", ""], "the text is empty"),
    (["generate", "{foreign}", "text"], "was made for another base model than"),
    (["generate", "{orphan}", "text"], "gone is not a folder with a model in it"),
    (["generate", "{bare}", "text"], "is missing: the run has not finished, or was moved"),
    (["chat", "nowhere"], "nowhere is no run folder"),
    (["chat", "{foreign}"], "was made for another base model than"),
    (["chat", "{orphan}"], "gone is not a folder with a model in it"),
    (["chat", "{run}", "--device", "cuda:9"], "choose device=cpu"),
    (["chat", "{run}", "--temperature", "-1"], "--temperature -1.0 must be at least 0"),
    (["export", "nowhere", "--to", "lora"], "nowhere is no run folder"),
    (["export", "{run}", "--to", "lora", "--max-rank", "0"], "max_rank 0: choose at least 1"),
    (["export", "{run}", "--to", "lora", "--out", "{run}"], "is there already: name another"),
    (["export", "{foreign}", "--to", "lora"], "was made for another base model than"),
    (["export", "{foreign}", "--to", "merged"], "was made for another base model than"),
    (["export", "{orphan}", "--to", "merged"], "gone is not a folder with a model in it"),
    (["export", "{bare}", "--to", "lora"], "is missing: the run has not finished, or was moved"),
    (["audit", "nowhere"], "nowhere is no run folder"),
    (["audit", "{foreign}"], "was made for another base model than"),
    (["audit", "{rowless}"], "moved.jsonl: no such file or folder"),
    (["audit", "{run}", "--rows", "0"], "--rows 0 must be at least 1"),
    (["audit", "--canaries", "0"], "--canaries 0 must be at least 20"),
]
FEDERATION = [
    (["init", "--host", "h", "--sites", "a/b"], "site 'a/b': a name is letters, digits and '-'"),
    (["init", "--host", "h", "--sites", "a", "a"], "each its own"),
    (["init", "--host", "h", "--sites", "a", "--folder", "{kept}"], "holds keys already"),
    (["admit", "--folder", "{here}"], "holds no sites' keys: run `fedtuners federation init`"),
]
WRITES = [
    ["plan", "--json", "{here}/plan.json"],
    ["report", "{run}", "--out", "{here}/report.html"],
    ["evaluate", "{run}", "--json", "{here}/scores.json"],
    ["export", "{run}", "--to", "lora", "--out", "{here}/lora"],
    ["export", "{run}", "--to", "merged", "--out", "{here}/merged"],
    ["federation", "init", "--host", "h", "--sites", "a", "--folder", "{here}/keys"],
]


@pytest.fixture
def refused(
    places: dict[str, Path],
    fed_sb: Path,
    verb: Verb,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Refused:
    """Call a verb that must refuse; returns its sentence. Nothing may be new or changed."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    monkeypatch.setattr("fedtuners.cli.run.follow", no_process)

    def called(*arguments: str) -> str:
        before = contents(fed_sb), contents(tmp_path)
        code, _, err = verb(*(filled(word, places) for word in arguments))
        assert code == 2, err
        assert len(err.strip().splitlines()) == 1, err
        assert (contents(fed_sb), contents(tmp_path)) == before
        return err

    return called


@pytest.fixture
def places(fed_sb: Path, tiny: Path, tmp_path: Path) -> dict[str, Path]:
    """Files and runs with something wrong, by name."""
    here = tmp_path / "here"
    here.mkdir()
    rows = [{"instruction": "w1", "output": "w2"}] * 4
    write_rows(here / "columns.jsonl", [{"a": "b"}] * 4)
    write_rows(here / "half.jsonl", [*rows, {"instruction": "w1"}])
    write_rows(here / "lists.jsonl", [{"instruction": "w1", "output": ["w2"]}] * 4)
    write_rows(here / "groups.jsonl", [*(row | {"user": "w3"} for row in rows), *rows])
    (here / "empty.jsonl").write_text("")
    (here / "broken.jsonl").write_text('{"instruction": "w1", "output": "w2"}\n{"instruction\n')
    (here / "rows.xlsx").write_bytes(b"PK")
    (here / "kept").mkdir()
    (here / "kept" / "ca.key").write_text("a key")
    found = {"here": here, "run": fed_sb, "kept": here / "kept"}
    for name, change in CHANGES.items():
        found[name] = shutil.copytree(fed_sb, tmp_path / "runs" / name)
        change(found[name], tiny)
    return found


def replaced(old: str, new: str) -> Callable[[Path, Path], None]:
    """A change of a run: another text in its config.yaml."""

    def change(run: Path, tiny: Path) -> None:
        text = (run / "config.yaml").read_text()
        known = {"tiny": str(tiny)}
        assert old.format(**known) in text
        (run / "config.yaml").write_text(text.replace(old.format(**known), new.format(**known)))

    return change


CHANGES: dict[str, Callable[[Path, Path], None]] = {
    "unfinished": lambda run, _: (run / "summary.json").unlink(),
    "damaged": lambda run, _: (run / "metrics.jsonl").write_text('{"round":\n') and None,
    "blank": lambda run, _: (run / "metrics.jsonl").write_text("") and None,
    "bare": lambda run, _: (run / "adapter" / "adapter_model.safetensors").unlink(),
    "foreign": replaced("name: {tiny}/llama", "name: demo"),
    "orphan": replaced("name: {tiny}/llama", "name: {tiny}/gone"),
    "rowless": replaced("source: {tiny}/rows.jsonl", "source: {tiny}/moved.jsonl"),
}


@pytest.mark.parametrize(("wrong", "said"), RUNS, ids=[" ".join(case[0]) for case in RUNS])
@pytest.mark.parametrize("name", ["plan", "run"])
def test_of_what_cannot_run(
    name: str, wrong: list[str], said: str, tiny: Path, verb: Verb, refused: Refused,
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if wrong == ["model=no/where"]:
        monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    keys = {word.partition("=")[0] for word in wrong}
    rest = [word for word in words(tiny) if word.partition("=")[0] not in keys]

    if name == "plan":
        code, out, err = verb("plan", *(filled(word, places) for word in [*rest, *wrong]))
        assert code == 2
        assert said in " ".join((out + err).split())
    else:
        assert said in refused("run", *rest, *wrong)


@pytest.mark.parametrize("name", ["plan", "run"])
def test_of_a_model_whose_head_has_other_labels(
    name: str, tiny: Path, places: dict[str, Path], verb: Verb
) -> None:
    rows = [{"text": f"w{n}", "label": "abc"[n % 3]} for n in range(30)]
    write_rows(places["here"] / "three.jsonl", rows)
    own = words(tiny, *OTHER_LABELS, "adapter.rank=4", model="bert")
    own[2] = f"data={places['here']}/three.jsonl"

    code, out, err = verb(name, *own)

    assert code == 2
    assert "head has 2 labels and the data 3: use a base model without" in out + err


@pytest.mark.parametrize(("wrong", "said"), FINISHED, ids=[" ".join(case[0]) for case in FINISHED])
def test_of_verbs_after_a_run(
    wrong: list[str], said: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    assert said in refused(*wrong)


@pytest.mark.parametrize(("wrong", "said"), FEDERATION, ids=[" ".join(c[0]) for c in FEDERATION])
def test_of_federation(wrong: list[str], said: str, refused: Refused) -> None:
    assert said in refused("federation", *wrong)


@pytest.mark.parametrize("wrong", WRITES, ids=[" ".join(case[:2]) for case in WRITES])
def test_of_a_full_disk(wrong: list[str], refused: Refused, places: dict[str, Path]) -> None:
    for name in ("plan.json", "report.html", "scores.json"):
        (places["here"] / name).write_text("what was there before")

    with full_disk():
        said = refused(*wrong)

    assert filled(wrong[-1], places) in said
    assert "make room there" in said


def test_of_a_full_disk_before_a_run(
    tiny: Path, refused: Refused, places: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "outputs").mkdir()

    with full_disk():
        said = refused("run", *words(tiny, "adapter.rank=4"))

    assert said.startswith(f"fedtuners run: {tmp_path / 'outputs'}: ")
    assert "make room there" in said


@contextmanager
def full_disk() -> Iterator[None]:
    """Within it no file can grow beyond 100 bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def filled(word: str, places: dict[str, Path]) -> str:
    for name, place in places.items():
        word = word.replace(f"{{{name}}}", str(place))
    return word


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def unreachable(*_: Any, **__: Any) -> None:
    raise OSError("no network")


def no_process(*_: Any, **__: Any) -> None:
    raise AssertionError("a process was started for what cannot run")
