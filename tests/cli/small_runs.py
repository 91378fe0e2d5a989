"""Runs of a second on tiny models, for the tests of the verbs."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedtuners.config import compose

CONF = Path(__file__).resolve().parents[2] / "conf"
SMALL = [
    *("federation.clients=3", "federation.rounds=2", "federation.wait=1", "partition=size"),
    *("train.steps=2", "train.batch_size=4", "start.rows=8", "start.batch_size=4", "device=cpu"),
    *("data.max_length=24", "data.max_new_tokens=4", "data.metric=loss"),
]


def words(tiny: Path, *overrides: str, model: str = "llama", rows: str = "rows") -> list[str]:
    """Overrides of a run of a second on a tiny model."""
    own = [f"model={tiny / model}", "model.dtype=float32", f"data={tiny / rows}.jsonl"]
    return [*own, *SMALL, *overrides]


def finished(folder: Path, overrides: list[str]) -> Path:
    """The folder of a run on two in-process nodes."""
    from local_grid import LocalGrid

    from server_app.run import run

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FEDTUNERS_STATE", str(folder / "state"))
        patched.setenv("FEDTUNERS_OUTPUTS", str(folder / "outputs"))
        run(compose(overrides, CONF), LocalGrid(2), "r" * 20)
    return (folder / "outputs" / "latest").resolve()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def lines(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
