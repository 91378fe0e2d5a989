"""Seconds and bytes of a round: processes over gRPC with TLS, against Flower's simulation.

    python -m benchmarks.deployment --ranks 2 16 64

Two sites on one machine, one optimiser step a round, so that what is measured is the way there and
back: polling, a process per message, imports, loading the model, and the bytes. The rank of plain
LoRA sets their number; the simulation is `fedtuners run` with the same settings.
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

from benchmarks.harness import ROOT, Row, report

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "deployment")]
SETTINGS = (
    "strategy=fedavg_lora adapter=lora federation.clients=2 federation.minimum_nodes=1 "
    "train.steps=1 train.batch_size=8 data.train_rows=400 data.test_rows=8 data.max_new_tokens=4 "
    "evaluation.every=100 device=cpu"
)


def measured(folder: Path) -> tuple[float, int]:
    """(median seconds of a round's training, bytes up and down of a client and round)."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rounds = [x["training_seconds"] for x in lines if "client" not in x and x["round"] > 1]
    sizes = [x["up"] + x["down"] for x in lines if "client" in x and x["round"] > 1]
    return statistics.median(rounds), round(statistics.mean(sizes))


def simulated(overrides: str, outputs: Path) -> Path:
    """The run folder of a simulation."""
    environment = os.environ | {"FEDTUNERS_OUTPUTS": str(outputs)}
    command = ["fedtuners", "run", "--app", str(ROOT), *overrides.split(), f"outputs={outputs}"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return outputs / "latest"


@contextmanager
def deployed(folder: Path) -> Iterator[Any]:
    """The services of docker-compose.yml with two sites."""
    from services import brought_up

    yield from brought_up(folder, "site-a", "site-b", FEDTUNERS_ROWS="400")


def main() -> None:
    """Print the table, and write it to benchmarks/results/deployment.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 16, 64])
    parser.add_argument("--rounds", type=int, default=4, help="the first of them is left out")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out")
    parsed = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name, deployed(Path(name) / "fleet") as services:
        for rank in parsed.ranks:
            run = (
                f"{SETTINGS} model={parsed.model} adapter.rank={rank} "
                f"federation.rounds={parsed.rounds}"
            )
            done = services.once("submit", FEDTUNERS_RUN=f"federation.minimum_nodes=2 {run}")
            assert done.returncode == 0, done.stdout + done.stderr
            seconds, size = measured(services.run_folder)
            reference, _ = measured(simulated(run, Path(name) / f"simulated-{rank}"))
            note = f"{size:,} bytes a client and round"
            rows.append(Row(f"rank {rank}: a round", seconds, reference, "s", "", note))
    report("deployment", rows, {"model": parsed.model, "rounds": parsed.rounds}, parsed.out)


if __name__ == "__main__":
    main()
