"""Each experiment of conf/ says how it is run and what it gives, and its composition runs.

The run is the experiment's own but for its size: a tiny model of the same kind, and rows with the
same columns.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
from local_grid import LocalGrid
from small_runs import CONF

from fedtuners.config import compose
from server_app.run import run

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
KIND = {"bert-base": "bert", "minilm": "bert", "roberta-large": "bert"}  # the others generate
ROWS = {
    "commonsense170k": {
        "instruction": "Is it w{n}?\n\nAnswer format: true/false",
        "input": "",
        "answer": "true",
    },
    "glue": {"sentence1": "w{n}", "sentence2": "w2", "label": "{bit}"},
    "metamathqa": {"query": "w{n}?", "response": "#### {n}", "type": "t{bit}"},
    "metamathqa-math": {"query": "w{n}?", "response": r"\boxed{{{n}}}", "type": "t{bit}"},
    "snli": {"premise": "w{n}", "hypothesis": "w2", "label": "neutral"},
}


def header(name: str) -> tuple[str, str]:
    """The command of an experiment, and what its first lines say besides."""
    text = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    lines = [line.removeprefix("# ") for line in text.partition("defaults:")[0].splitlines()]
    return lines[1], " ".join(lines[2:])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_headed_by_its_command_and_what_it_gives(name: str) -> None:
    command, said = header(name)

    assert command == f"fedtuners run experiment={name}"
    assert re.search(r"\bGives\b", said)
    assert "Needs" in said or "Measured" in said


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_composition_runs(name: str, tiny: Path, tmp_path: Path) -> None:
    words = shlex.split(header(name)[0])[2:]
    chosen = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    model, data = (re.findall(rf"/{group}: (\S+)", chosen)[0] for group in ("model", "data"))
    file = tmp_path / "rows.jsonl"
    rows = [
        {key: value.format(n=n, bit=n % 2) for key, value in ROWS[data].items()} for n in range(24)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    small = [
        *(f"model.name={tiny / KIND.get(model, 'llama')}", "model.dtype=float32", "device=cpu"),
        *(f"data.source={file}", "data.subset=null", "data.test_source=null", "data.train_rows=18"),
        *("data.max_length=56", "data.max_new_tokens=4", "federation.clients=3"),
        *("federation.rounds=1", "adapter.rank=4", "start.rows=4", "start.batch_size=4"),
    ]
    if data == "snli":
        small.append("data.labels=[neutral,contradiction]")  # as many as the tiny model's head has
    full = compose(words, CONF)

    summary = run(compose([*words, *small], CONF), LocalGrid(2), "experiment")

    assert (summary["strategy"], summary["adapter"]) == ("fed_sb", "lora_sb")
    assert summary["rounds"] == 1
    assert summary["metric"] == full.data.measured
    lines = (tmp_path / "outputs" / "latest" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["steps"] for line in lines if '"client"' in line]
    assert steps == [full.train.epochs or full.train.steps] * 3  # six rows are one batch
