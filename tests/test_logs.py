"""Structured logs: every line with its run, round and node, on the server's disk and the site's."""

import json
import logging
from pathlib import Path

import pytest
from local_grid import LocalGrid

from fedtuners.config import compose
from fedtuners.logs import located, recorded
from server_app.run import run

ROOT = Path(__file__).resolve().parents[1]
log = logging.getLogger("flwr")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_carries_where_it_was_said(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with recorded(path), located(run="7", node="server"):
        log.warning("before")
        with located(round=2):
            log.warning("in it: %s", "ε")
        log.warning("after")
    log.warning("not recorded")

    found = [(x["message"], x["run"], x["node"], x.get("round")) for x in lines(path)]
    assert found == [
        ("before", "7", "server", None),
        ("in it: ε", "7", "server", 2),
        ("after", "7", "server", None),
    ]


def test_a_line_that_cannot_be_written_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded(tmp_path / "missing" / "log.jsonl"):
        log.warning("lost")

    assert "FileNotFoundError" in capsys.readouterr().err


def test_a_run_leaves_its_rounds_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Prepare
    monkeypatch.setenv("FEDTUNERS_STATE", str(tmp_path / "state"))
    settings = (
        *("strategy=fedavg_lora", "adapter=lora", "federation.rounds=2", "federation.clients=2"),
        *("train.steps=1", "data.test_rows=4", "data.max_new_tokens=2", "data.train_rows=100"),
        f"outputs={tmp_path / 'outputs'}",
    )

    # Execute
    run(compose(list(settings), ROOT / "conf"), LocalGrid(2), "run-7")

    # Assert
    server = lines(tmp_path / "outputs" / "latest" / "log.jsonl")
    said = [line for line in server if line["node"] == "server"]
    assert {line["run"] for line in server} == {"run-7"}
    for round_ in (1, 2):
        about = [str(line["message"]) for line in said if line.get("round") == round_]
        assert any(text.startswith(f"round {round_}: 2 clients") for text in about)
    site = lines(tmp_path / "state" / "log.jsonl")
    answered = {(x["round"], x["node"]) for x in site if x["message"] == "answered train: ok"}
    assert answered == {(r, f"client-{c}") for r in (1, 2) for c in (0, 1)}
