"""Private training of the embedded model: strategies by ε, the small sibling of private_snli.

    python -m benchmarks.private_demo --minutes 30

Three clients with 800 commands each, three rounds of few steps: the score is the loss of test
commands, lower is better. δ is N^-1.1. Fed-SB starts from the clients' rows, which is part of its
ε, and once from the base's weights, which is free. Finished runs are kept in
benchmarks/results/private_demo.jsonl and not repeated. ε = ∞ is training without clipping or noise.
"""

from pathlib import Path

from benchmarks.private_snli import by_epsilon, options, table

RESULTS = Path("benchmarks/results/private_demo.jsonl")
LORA = "adapter=lora adapter.rank=16 adapter.alpha=32"
SB = "strategy=fed_sb adapter=lora_sb train.learning_rate=2e-2 adapter.rank="
METHODS = {
    "FedAvg-LoRA r16": f"strategy=fedavg_lora {LORA}",
    "FFA-LoRA r16": f"strategy=ffa_lora {LORA}",
    "FedEx-LoRA r16": f"strategy=fedex_lora {LORA}",
    "Fed-SB r8": f"{SB}8",
    "Fed-SB r16": f"{SB}16",
    "Fed-SB r32": f"{SB}32",
    "Fed-SB r16 from the base's weights": f"{SB}16 adapter.init=weights",
}
COMMON = [
    *("partition=iid", "federation.clients=3", "federation.rounds=3"),
    *("train.steps=5", "train.batch_size=32", "start.rows=100"),
    *("data.train_rows=2400", "data.test_rows=100", "data.metric=loss", "evaluation.every=99"),
]


def main() -> None:
    """Run what is missing while there is time, then print the table."""
    parsed = options(__doc__, RESULTS).parse_args()
    print(table(by_epsilon(parsed, METHODS, COMMON), METHODS, score="loss", scale=1))


if __name__ == "__main__":
    main()
