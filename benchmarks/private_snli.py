"""Private SNLI on a small encoder: strategies by ε, beside the published BERT-base figures.

    python -m benchmarks.private_snli --data snli/ --model minilm-l6-v2/ --minutes 30

`--data` is a folder with train.jsonl, or validation.jsonl to train on where there is none, and
test.jsonl. Every run is a federation in this process: 3 clients, query and value adapters and the
head, one round and clip 0.1 are those of Fed-SB's private table (arXiv:2502.15436). Its six passes
over 183,000 examples a client are not: a client takes ten steps of 256 examples in expectation,
which is minutes on a CPU, so the noise weighs more and the ranks are smaller. Fed-SB starts from
the base's weights, at no ε. Finished runs are kept in benchmarks/results/private_snli.jsonl and not
repeated; no run is begun after `--minutes`, so the table grows over several calls. ε = ∞ is
training without clipping or noise.
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from benchmarks.tables import Line, federation, fill, markdown, spread

RESULTS = Path("benchmarks/results/private_snli.jsonl")
LORA = "adapter=lora adapter.rank=32"
CORE = "strategy=fed_sb adapter=lora_sb adapter.init=weights"
METHODS = {  # learning rates with which each learns without privacy; not tuned further
    "FedAvg-LoRA r32": f"strategy=fedavg_lora {LORA} train.learning_rate=5e-3",
    "FFA-LoRA r32": f"strategy=ffa_lora {LORA} train.learning_rate=1e-2",
    "FedEx-LoRA r32": f"strategy=fedex_lora {LORA} train.learning_rate=5e-3",
    "Fed-SB r8": f"{CORE} adapter.rank=8 train.learning_rate=1e-2",
    "Fed-SB r16": f"{CORE} adapter.rank=16 train.learning_rate=1e-2",
    "Fed-SB r32": f"{CORE} adapter.rank=32 train.learning_rate=1e-2",
}
# BERT-base on all of SNLI, (ε = 1, ε = 3); its ε leaves the start out and takes δ above 1/N.
PUBLISHED = {
    "FFA-LoRA r32": (70.10, 71.49),
    "FedEx-LoRA r32": (67.39, 69.68),
    "Fed-SB r32": (70.32, 72.68),
}
COMMON = [
    "model=minilm",
    "data=snli",
    "partition=iid",
    "adapter.targets=[query,value]",
    "federation.clients=3",
    "federation.rounds=1",
    "train.steps=10",
    "train.batch_size=256",
    "train.micro_batch=32",
    "privacy.clip=0.1",
    "data.max_length=48",
    "data.test_rows=1000",
]


def main() -> None:
    """Run what is missing while there is time, then print the table."""
    parser = options(__doc__, RESULTS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parsed = parser.parse_args()
    split = "train" if (parsed.data / "train.jsonl").exists() else "validation"
    shared = [f"data.source={parsed.data}", f"data.train_split={split}"]
    words = [*COMMON, *shared, f"model.name={parsed.model}"]
    print(table(by_epsilon(parsed, METHODS, words), METHODS))


def options(about: str | None, results: Path) -> argparse.ArgumentParser:
    """What both tables of strategies by ε are asked for."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1.0, 3.0, float("inf")])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("overrides", nargs="*", help="for every run, e.g. train.steps=600")
    return parser


def by_epsilon(
    parsed: argparse.Namespace, methods: Mapping[str, str], words: Sequence[str]
) -> list[Line]:
    """Every method at every ε and seed; `words` are the settings of all."""
    wanted: list[Line] = [
        {
            "method": method,
            "epsilon": epsilon,
            "seed": seed,
            "settings": " ".join(sorted(parsed.overrides)),
        }
        for seed, epsilon, method in product(parsed.seeds, parsed.epsilons, methods)
    ]

    def measure(key: Line) -> Line:
        own = [*methods[key["method"]].split(), f"seed={key['seed']}"]
        return measured([*words, *parsed.overrides, *own], key["epsilon"])

    return fill(parsed.results, wanted, measure, parsed.minutes)


def measured(words: Sequence[str], epsilon: float) -> Line:
    """One federation: its score, parameters, the ε that it reports, seconds."""
    private = ["privacy=example", f"privacy.epsilon={epsilon}"] if epsilon < float("inf") else []
    with federation([*words, *private]) as (summary, _):
        return {
            summary["metric"]: summary["final"],
            "parameters": summary["trainable_parameters"],
            "reported": summary["privacy"].get("epsilon"),
            "delta": summary["privacy"].get("delta"),
            "seconds": summary["seconds"]["total"],
        }


def table(
    done: list[Line], methods: Mapping[str, str], score: str = "accuracy", scale: float = 100
) -> str:
    """Markdown: the score by method and ε, mean ± standard deviation over the seeds."""
    epsilons = sorted({line["epsilon"] for line in done})
    head = ["method", "numbers a client", *(f"ε = {e:g}".replace("inf", "∞") for e in epsilons)]
    head += ["published ε = 1 / 3"] if score == "accuracy" else []
    body = []
    for method in methods:
        lines = [line for line in done if line["method"] == method]
        if not lines:
            continue
        row = [method, f"{lines[0]['parameters']:,}"]
        for epsilon in epsilons:
            values = [scale * line[score] for line in lines if line["epsilon"] == epsilon]
            row.append(spread(values, 1 if scale == 100 else 2))
        if score == "accuracy":
            row.append(" / ".join(map(str, PUBLISHED.get(method, ("–", "–")))))
        body.append(row)
    return markdown(head, body)


if __name__ == "__main__":
    main()
