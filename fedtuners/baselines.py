"""The two limits of a federation: every client alone, and all rows in one loop.

Both take the optimiser steps that the federation's clients take together. A client alone takes on
its own rows the steps for which the federation asks it on average, rounds × steps × the share of
the clients that is asked in a round; the centralised loop takes the sum of these on all rows. Each
is one loop with one optimiser, where a federation's clients begin a new one in every round.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from datasets import Dataset

from fedtuners.adapters import estimate_updates, set_start
from fedtuners.config import Config
from fedtuners.tasks import Encoded, batches, evaluate, load, partition
from fedtuners.training import seeded, train
from fedtuners.tuned import TunedModel

BASELINES = ("alone", "centralised")


@dataclass(frozen=True)
class Trained:
    """One training without a federation."""

    score: float  # on the test rows that all share
    loss: float
    rows: int  # that it trained on
    steps: int


def baseline(kind: str, config: Config) -> tuple[float, int, list[Trained]]:
    """The base model's score, the numbers that train, and the trainings: each client's, or one.

    The score of `alone` is the mean of its clients' scores. Raises ValueError for a private run,
    whose noise a training without a federation does not have.
    """
    if config.privacy.active:
        raise ValueError(f"strategy={kind} trains without privacy: compare it with privacy=none")
    rows = load(config.data, config.seed)
    config = replace(config, data=replace(config.data, labels=list(rows.labels)))
    tuned = TunedModel(config)
    before = _score(tuned, rows.test)
    jobs = _jobs(config, rows.train, kind)
    done = [_trained(tuned, part, steps, rows.test) for part, steps in jobs]
    return before, sum(tensor.numel() for tensor in tuned.state().values()), done


def _jobs(config: Config, rows: Dataset, kind: str) -> Iterable[tuple[Dataset, int]]:
    """(rows, optimiser steps) of each training."""
    count = config.federation.clients
    parts = [partition(rows, config.partition, count, client) for client in range(count)]
    steps = [steps_of(config, len(part)) for part in parts]
    if kind == "alone":
        return zip(parts, steps, strict=True)
    return [(rows, sum(steps))]


def steps_of(config: Config, rows: int) -> int:
    """The optimiser steps of a client of so many rows in the whole run, on average."""
    federation = config.federation
    asked = max(1, round(federation.fraction * federation.clients))
    steps = federation.rounds * config.train.resolved(rows).steps
    return max(1, round(steps * asked / federation.clients))


def _trained(tuned: TunedModel, rows: Dataset, steps: int, test: Dataset) -> Trained:
    """Train from the adapter's start on some rows, and score."""
    config = tuned.config
    encoded = tuned.task.encode(rows, tuned.tokenizer)
    tuned.uninstall()
    if tuned.adapter.needs_estimate:
        _start(tuned, encoded)
    settings = replace(config.train, steps=steps, epochs=None)
    key = (config.seed, 1, 0)
    size, grouped = settings.batch_size, settings.group_by_length
    drawn = batches(encoded, tuned.pad, size, steps, key, grouped)
    with seeded(key):
        told = train(tuned.model, tuned.task, drawn, settings)
    return Trained(_score(tuned, test), float(told["loss"]), len(rows), steps)


def _start(tuned: TunedModel, encoded: Encoded) -> None:
    """LoRA-SB's start, from the rows that are trained on."""
    drawn = tuned.start_batches(encoded, 0)
    names, rank = list(tuned.shapes), max(tuned.adapter.module_ranks())
    eta = tuned.config.start.learning_rate
    set_start(
        tuned.model, estimate_updates(tuned.model, drawn, tuned.summed_loss, names, rank, eta)
    )


def _score(tuned: TunedModel, test: Dataset) -> float:
    size = tuned.config.evaluation.batch_size
    return evaluate(tuned.task, tuned.model, tuned.tokenizer, test, batch_size=size).value
