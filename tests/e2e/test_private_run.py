"""A private run through Flower and Ray: what it reports is what its clients' ledgers hold.

LoRA-SB starts from the clients' noised sketches, so that start and training share one budget.
"""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedtuners.privacy import Event, epsilon

pytestmark = pytest.mark.slow
Command = Callable[..., subprocess.CompletedProcess[str]]
CLIENTS, ROUNDS, STEPS, ROWS, BATCH, START_ROWS = 3, 2, 2, 300, 10, 20
SMALL = (
    *("privacy=example", "strategy=fed_sb", "start.source=clients", "partition=iid"),
    *(f"federation.rounds={ROUNDS}", f"federation.clients={CLIENTS}", f"train.steps={STEPS}"),
    *(f"train.batch_size={BATCH}", f"data.train_rows={ROWS}", f"start.rows={START_ROWS}"),
    *("data.test_rows=8", "data.max_new_tokens=8", "adapter.rank=8"),
)


def book(path: Path) -> list[dict[str, Any]]:
    """What a ledger says was spent."""
    entries = [json.loads(line)["entry"] for line in path.read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == "spent"]


def test_the_reported_epsilon_is_that_of_the_ledgers(fedtuners: Command) -> None:
    finished = fedtuners("run", *SMALL)

    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-3000:]
    folder = Path(re.findall(r"run folder: (/\S+)", finished.stdout)[-1])
    report = json.loads((folder / "summary.json").read_text())["privacy"]
    units = ROWS // CLIENTS
    sigma = report["noise_multiplier"][0]
    planned = [Event(sigma, START_ROWS / units, 2), Event(sigma, BATCH / units, STEPS * ROUNDS)]
    recomputed = epsilon(planned, report["delta"], "pld")  # the run's own is Opacus'
    assert report["accountant"] == "prv"
    assert report["delta"] < 1 / units
    assert report["epsilon"] == pytest.approx(recomputed, abs=0.02)
    assert 2.9 < report["epsilon"] <= 3.0
    books = [book(path) for path in (folder.parent.parent / "state").rglob("ledger.jsonl")]
    assert len(books) == CLIENTS
    for entries in books:
        steps = [(entry["sample_rate"], entry["steps"]) for entry in entries]
        assert steps == [(START_ROWS / units, 1)] * 2 + [(BATCH / units, STEPS)] * ROUNDS
        spent = [Event(e["noise_multiplier"], e["sample_rate"], e["steps"]) for e in entries]
        assert epsilon(spent, report["delta"], "pld") == pytest.approx(recomputed, abs=1e-6)
