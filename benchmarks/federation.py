"""A federated run beside the same optimiser steps in one plain local loop: where does the rest go?

    python -m benchmarks.federation

4 clients × 5 rounds of the embedded model (`--model 100m`: a random Llama of that class), in one
process and without Ray, so that the difference is this project's own: data, packing, messages,
pieces, aggregation. Five rounds are a run of six less a run of one, so that what is done once,
start-up, evaluation and saving, is apart.
"""

import cProfile
import itertools
import os
import pstats
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.harness import ROOT, Row, interleaved, parser, report
from fedtuners.config import Config, compose
from fedtuners.tasks import Batch, batches, load, partition
from fedtuners.training import train
from fedtuners.tuned import TunedModel

# Where a round's time may go, as (what, file, function), cumulative.
FIRST = "training itself"
PLACES = (
    (FIRST, "training.py", "train"),
    ("rows: load", "sources.py", "load"),
    ("rows: partition", "partition.py", "partition"),
    ("rows: tokens", "task.py", "encode"),
    ("packing", "packing.py", "pack"),
    ("unpacking", "packing.py", "unpack"),
    ("install", "tuned.py", "install"),
    ("aggregation", "mean.py", "add"),
)

SETTINGS = (
    "federation.rounds=6",
    "federation.clients=4",
    "train.steps=10",
    "evaluation.every=99",
    "data.test_rows=16",
)
BIG = (
    *("model.dtype=float32", "train.steps=1", "train.batch_size=2", "start.rows=4"),
    "data.max_new_tokens=2",
)


def big_model(folder: Path) -> str:
    """A random Llama of 100 million parameters with the embedded model's tokeniser, on disk."""
    from fedtuners.tasks import ModelConfig
    from fedtuners.tasks.models import load_tokenizer

    tokenizer = load_tokenizer(ModelConfig(name="demo"))
    model = models.llama(768, 3072, 10, 12, 12, len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def local(config: Config, tuned: TunedModel, drawn: list[list[Batch]]) -> Callable[[], object]:
    """Every client's steps of every round, one after the other, in a plain loop."""
    return lambda: [train(tuned.model, tuned.task, part, config.train) for part in drawn]


def drawn_batches(config: Config, tuned: TunedModel) -> list[list[Batch]]:
    """The batches of the federated run, by round and client."""
    rows = load(config.data, config.seed).train
    count, settings = config.federation.clients, config.train
    found = []
    for round_ in range(2, config.federation.rounds + 1):
        for client in range(count):
            part = partition(rows, config.partition, count, client)
            encoded = tuned.task.encode(part, tuned.tokenizer)
            key = (config.seed, round_, client)
            drawn = batches(encoded, tuned.pad, settings.batch_size, settings.steps, key)
            found.append(list(drawn))
    return found


def places(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds by place in one profiled call."""
    profile = cProfile.Profile()
    profile.runcall(call)
    stats: Any = pstats.Stats(profile)
    return {
        what: sum(
            line[3]
            for (path, _, name), line in stats.stats.items()
            if path.endswith(file) and name == function and str(ROOT) in path
        )
        for what, file, function in PLACES
    }


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.set_defaults(repeats=2)
    options.add_argument("--model", choices=("demo", "100m"), default="demo")
    options.add_argument("overrides", nargs="*", help="Hydra overrides of the run")
    parsed = options.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from local_grid import LocalGrid

    from server_app.run import run

    with tempfile.TemporaryDirectory() as name:
        os.environ["FEDTUNERS_STATE"] = f"{name}/state"
        os.environ["FEDTUNERS_OUTPUTS"] = f"{name}/outputs"
        words = list(SETTINGS)
        if parsed.model == "100m":
            words += [f"model={big_model(Path(name) / 'model')}", *BIG]
        config = compose([*words, *parsed.overrides], ROOT / "conf")
        tuned = TunedModel(config)
        drawn = drawn_batches(config, tuned)

        def federated(rounds: int) -> dict[str, Any]:
            federation = replace(config.federation, rounds=rounds)
            return run(replace(config, federation=federation), LocalGrid(1), str(next(number)))

        number = itertools.count()
        calls = {
            "six rounds": lambda: federated(6),
            "one round": lambda: federated(1),
            "plain loop": local(config, tuned, drawn),
        }
        seconds = interleaved(calls, parsed.repeats, warm_up=0)
        spent = places(lambda: federated(3))
    whole, first, loop = (seconds[name].median for name in calls)
    note = f"{seconds['six rounds']} − {seconds['one round']} / {seconds['plain loop']}"
    rows = [
        Row("five rounds", whole - first, loop, "s", "≤ 1.10", note),
        Row("once: start-up, two evaluations, saving", first - (whole - first) / 5, loop, "s"),
        *(Row(f"profile: {what}", took, spent[FIRST], "s") for what, took in spent.items()),
    ]
    report(f"federation_{parsed.model}", rows, vars(parsed), parsed.json)


if __name__ == "__main__":
    main()
