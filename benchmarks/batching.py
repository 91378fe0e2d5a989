"""Training on rows of real lengths: padded as drawn, cut by micro-batch, grouped by length.

    python -m benchmarks.batching
    FEDTUNERS_DATA=<folder with gsm8k/train.jsonl> python -m benchmarks.batching

The embedded model's commands, or GSM8K where its folder is named. Micro-batches hold the same
examples as their batch, sorted and cut to their own longest; grouping draws batches of similar
lengths.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import models
from benchmarks.harness import Row, interleaved, parser, report
from fedtuners.adapters import LoraSb
from fedtuners.config import TrainConfig
from fedtuners.tasks import Batch, Encoded, Task, batches, load, make_task
from fedtuners.tasks.config import DataConfig, ModelConfig
from fedtuners.tasks.models import load_tokenizer
from fedtuners.training import train


def rows_of(count: int) -> tuple[str, Task, list[Mapping[str, Any]]]:
    """(name, task, rows): commands, or GSM8K's solved problems where FEDTUNERS_DATA has them."""
    if folder := os.environ.get("FEDTUNERS_DATA"):
        path = Path(folder) / "gsm8k" / "train.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()[:count]
        config = DataConfig(prompt="{question}\n", response="{answer}", max_length=768)
        return "gsm8k", make_task(config), [json.loads(line) for line in lines]
    config = DataConfig(train_rows=count)
    return "commands", make_task(config), list(load(config, 0).train)


def padding(drawn: list[Batch], micro_batch: int | None) -> float:
    """The share of a model's input that is padding."""
    parts = [part for batch in drawn for part in batch.split(micro_batch)]
    held = sum(part.inputs["input_ids"].numel() for part in parts)
    return 1 - sum(part.tokens for part in parts) / held


def check(task: Task, model: Any, batch: Batch, micro_batch: int) -> float:
    """Equal masks and, within rounding, equal losses; returns the largest difference of a loss."""
    parts = batch.split(micro_batch)
    assert sum(int((part.labels != -100).sum()) for part in parts) == int(
        (batch.labels != -100).sum()
    )
    with torch.no_grad():
        whole = sorted(task.per_example_loss(model, batch).tolist())
        cut = sorted(nats for part in parts for nats in task.per_example_loss(model, part).tolist())
    worst = max(abs(a - b) for a, b in zip(whole, cut, strict=True))
    assert worst < 1e-4
    return worst


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=256)
    options.add_argument("--batch-size", type=int, default=16)
    options.add_argument("--micro-batch", type=int, default=4)
    options.add_argument("--steps", type=int, default=2)
    parsed = options.parse_args()
    tokenizer = load_tokenizer(ModelConfig(name="demo"))
    name, task, rows = rows_of(parsed.rows)
    encoded: Encoded = task.encode(rows, tokenizer)
    base = models.llama(160, 288, 3, 5, 5, len(tokenizer))
    model = LoraSb(rank=32, init="weights").attach(base, "causal_lm", seed=0)
    pad, size = int(tokenizer.pad_token_id), parsed.batch_size

    def drawn(grouped: bool) -> list[Batch]:
        return list(batches(encoded, pad, size, len(rows) // size, (0, 0, 0), grouped))

    mixed, grouped = drawn(False), drawn(True)
    tokens: dict[str, int] = {}

    def step(key: str, chosen: list[Batch], micro: int | None) -> Callable[[], object]:
        spread = chosen[:: max(1, len(chosen) // parsed.steps)][: parsed.steps]
        config = TrainConfig(steps=len(spread), micro_batch=micro, learning_rate=1e-4)
        tokens[key] = sum(batch.tokens for batch in spread)
        return lambda: train(model, task, spread, config)

    variants = {
        "as drawn": (mixed, None),
        "micro-batches": (mixed, parsed.micro_batch),
        "grouped": (grouped, None),
        "grouped, micro-batches": (grouped, parsed.micro_batch),
    }
    calls = {key: step(key, *variant) for key, variant in variants.items()}
    worst = check(task, model.eval(), mixed[0], parsed.micro_batch)
    seconds = interleaved(calls, parsed.repeats)
    speed = {key: tokens[key] / seconds[key].median for key in calls}
    result = [Row("largest difference of a loss", worst, aim="≤ 1e-4, equal masks")]
    for key, variant in variants.items():
        aim = "" if key == "as drawn" else "> 1"
        result += [
            Row(
                f"{key}: padding",
                padding(*variant),
                padding(mixed, None),
                aim="" if not aim else "< 1",
            ),
            Row(
                f"{key}: tokens a second", speed[key], speed["as drawn"], "", aim, str(seconds[key])
            ),
        ]
    report(f"batching_{name}", result, vars(parsed), parsed.json)


if __name__ == "__main__":
    main()
