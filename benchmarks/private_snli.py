"""Private SNLI on a small encoder: strategies by ε, beside the published BERT-base figures.

    python -m benchmarks.private_snli --data snli/ --model minilm-l6-v2/ --minutes 30

`--data` is a folder with train.jsonl, or validation.jsonl to train on where there is none, and
test.jsonl. Every run is a federation in this process, with the settings of Fed-SB's private table
(arXiv:2502.15436) where they fit: 3 clients, query and value adapters and the head, one round.
Finished runs are kept in benchmarks/results/private_snli.jsonl and not repeated; no run is begun
after `--minutes`, so the table grows over several calls. ε = ∞ is training without clipping or
noise.
"""

import argparse
import json
import os
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from client_app import handlers
from fedtuners.config import compose
from server_app.local import InProcessGrid
from server_app.run import run

RESULTS = Path("benchmarks/results/private_snli.jsonl")
METHODS = {
    "FedAvg-LoRA r32": "strategy=fedavg_lora adapter=lora adapter.rank=32",
    "FFA-LoRA r32": "strategy=ffa_lora adapter=lora adapter.rank=32",
    "FedEx-LoRA r32": "strategy=fedex_lora adapter=lora adapter.rank=32",
    "Fed-SB r32": "strategy=fed_sb adapter=lora_sb adapter.rank=32",
    "Fed-SB r48": "strategy=fed_sb adapter=lora_sb adapter.rank=48",
    "Fed-SB r64": "strategy=fed_sb adapter=lora_sb adapter.rank=64",
}
# BERT-base on all of SNLI, (ε = 1, ε = 3); its ε leaves the start out and takes δ above 1/N.
PUBLISHED = {
    "FFA-LoRA r32": (70.10, 71.49),
    "FedEx-LoRA r32": (67.39, 69.68),
    "Fed-SB r32": (70.32, 72.68),
    "Fed-SB r48": (73.68, 74.73),
    "Fed-SB r64": (73.82, 74.87),
}
COMMON = [
    "model=minilm",
    "data=snli",
    "partition=iid",
    "adapter.targets=[query,value]",
    "federation.clients=3",
    "federation.rounds=1",
    "train.batch_size=32",
    "train.learning_rate=5e-4",
    "privacy.clip=0.1",
    "data.test_rows=2000",
    "evaluation.every=1",
]


def main() -> None:
    """Run what is missing while there is time, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1.0, 3.0, float("inf")])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("overrides", nargs="*", help="for every run, e.g. train.steps=600")
    parsed = parser.parse_args()
    until = time.monotonic() + 60 * parsed.minutes
    split = "train" if (parsed.data / "train.jsonl").exists() else "validation"
    shared = [
        *(f"data.source={parsed.data}", f"data.train_split={split}"),
        *(f"model.name={parsed.model}", *parsed.overrides),
    ]
    done = _read(parsed.results)
    for seed, epsilon, method in product(parsed.seeds, parsed.epsilons, METHODS):
        key = {"method": method, "epsilon": epsilon, "seed": seed}
        key["settings"] = " ".join(sorted(parsed.overrides))
        if any(key.items() <= line.items() for line in done):
            continue
        if time.monotonic() > until:
            break
        words = [*COMMON, *shared, *METHODS[method].split(), f"seed={seed}"]
        done.append({**key, **measured(words, epsilon)})
        parsed.results.parent.mkdir(parents=True, exist_ok=True)
        with parsed.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done[-1]) + "\n")
    print(table(done))


def measured(words: list[str], epsilon: float) -> dict[str, Any]:
    """One federation: accuracy, parameters, the ε that it reports, seconds."""
    private = ["privacy=example", f"privacy.epsilon={epsilon}"] if epsilon < float("inf") else []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FEDTUNERS_STATE"] = f"{folder}/state"
        os.environ["FEDTUNERS_OUTPUTS"] = f"{folder}/outputs"
        summary = run(
            compose([*words, *private], Path("conf")),
            InProcessGrid(3, handlers.answer),
            "private-snli",
        )
    return {
        "accuracy": summary["final"],
        "parameters": summary["trainable_parameters"],
        "reported": summary["privacy"].get("epsilon"),
        "delta": summary["privacy"].get("delta"),
        "seconds": summary["seconds"]["total"],
    }


def table(done: list[dict[str, Any]]) -> str:
    """Markdown: accuracy in per cent by method and ε, mean ± standard deviation over the seeds."""
    epsilons = sorted({line["epsilon"] for line in done})
    head = ["method", "numbers a client", *(f"ε = {e:g}" for e in epsilons), "published ε = 1 / 3"]
    body = []
    for method in METHODS:
        lines = [line for line in done if line["method"] == method]
        if not lines:
            continue
        cells = [
            _spread([100 * line["accuracy"] for line in lines if line["epsilon"] == epsilon])
            for epsilon in epsilons
        ]
        published = " / ".join(map(str, PUBLISHED.get(method, ("–", "–"))))
        body.append([method, f"{lines[0]['parameters']:,}", *cells, published])
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
