"""Seconds and bytes of a round: processes over gRPC with TLS, cold and warm, against a simulation.

    python -m benchmarks.deployment

Two sites on one machine, one optimiser step a round, so that what is measured is the way there and
back: polling, a process per message, imports, loading the model, and the bytes. The largest case
is a random model of 100 million parameters. `warm` sites keep a worker process between messages;
the simulation is `fedtuners run` with the same settings. Seconds on the wall: leave the machine to
it alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.federation import big_model
from benchmarks.harness import ROOT, Row, report

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "deployment")]
SETTINGS = (
    "strategy=fedavg_lora adapter=lora federation.clients=2 federation.minimum_nodes=1 "
    "train.steps=1 train.batch_size=2 data.train_rows=400 data.test_rows=4 data.max_new_tokens=2 "
    "evaluation.every=100 device=cpu"
)
# The adapter's size decides the bytes; MODEL is the folder of the large model.
CASES = {
    "one q_proj, rank 1": "adapter.rank=1 adapter.targets=[layers.0.self_attn.q_proj]",
    "rank 8": "adapter.rank=8",
    "rank 64": "adapter.rank=64",
    "100M model, rank 160": "model=MODEL adapter.rank=160",
}
COLD = {f"SITE_{site}": "worker=0" for site in "AB"}


def measured(folder: Path) -> tuple[float, int]:
    """(median seconds of a round's training, bytes up and down of a client and round)."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rounds = [x["training_seconds"] for x in lines if "client" not in x and x["round"] > 1]
    sizes = [x["up"] + x["down"] for x in lines if "client" in x and x["round"] > 1]
    return statistics.median(rounds), round(statistics.mean(sizes))


def simulated(words: str, outputs: Path) -> Path:
    """The run folder of a simulation."""
    environment = os.environ | {"FEDTUNERS_OUTPUTS": str(outputs)}
    command = ["fedtuners", "run", "--app", str(ROOT), *words.split(), f"outputs={outputs}"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return outputs / "latest"


@contextmanager
def deployed(folder: Path, **environment: str) -> Iterator[Any]:
    """The services of docker-compose.yml with two sites."""
    from services import brought_up

    yield from brought_up(folder, "site-a", "site-b", FEDTUNERS_ROWS="400", **environment)


def seconds_of(words: dict[str, str], folder: Path, **environment: str) -> dict[str, float]:
    """Seconds of a round by case, in one deployment."""
    found = {}
    with deployed(folder, **environment) as services:
        for case, run in words.items():
            done = services.once("submit", FEDTUNERS_RUN=f"{run} federation.minimum_nodes=2")
            assert done.returncode == 0, done.stdout + done.stderr
            found[case], _ = measured(services.run_folder)
    return found


def main() -> None:
    """Print the table, and write it to benchmarks/results/deployment.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=4, help="the first of them is left out")
    parser.add_argument("--out")
    parsed = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = f"{SETTINGS} federation.rounds={parsed.rounds}"
        model = big_model(folder / "model") if any("100M" in c for c in parsed.cases) else ""
        words = {c: f"{settings} {CASES[c].replace('MODEL', model)}" for c in parsed.cases}
        cold = seconds_of(words, folder / "cold", **COLD)
        warm = seconds_of(words, folder / "warm")
        for number, (case, run) in enumerate(words.items()):
            reference, size = measured(simulated(run, folder / f"simulated-{number}"))
            note = f"{size:,} bytes a client and round"
            rows.append(Row(f"{case}: a process per message", cold[case], reference, "s", "", note))
            rows.append(Row(f"{case}: with the warm worker", warm[case], reference, "s", "", note))
    report("deployment", rows, {"rounds": parsed.rounds}, parsed.out)


if __name__ == "__main__":
    main()
