"""One client's local training: a plain loop, read from top to bottom.

The same loop serves a federated client, a local baseline and a benchmark's reference; it knows
nothing of federation. The optimiser is new in every call, so a client carries no moments between
rounds and a round can be repeated from its inputs alone.
"""

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fedtuners.config import TrainConfig
from fedtuners.optimisers import make_optimiser
from fedtuners.tasks import Batch, Task


def train(
    model: nn.Module, task: Task, batches: Iterable[Batch], config: TrainConfig
) -> dict[str, int | float]:
    """Take one optimiser step per batch; returns loss (mean over examples), tokens and seconds.

    The loss is the mean over a batch's examples of `task.per_example_loss`, so a batch cut into
    micro-batches gives the same gradient as the whole one.
    """
    started = time.monotonic()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = make_optimiser(trained, config)
    schedule = LambdaLR(optimiser, lambda step: rate(step, config))
    device = trained[0].device
    total = torch.zeros((), device=device)  # read once, after the last step
    examples = tokens = steps = 0
    model.train()
    optimiser.zero_grad(set_to_none=True)  # what a step left that failed on its way
    for batch in batches:
        for part in batch.split(config.micro_batch):
            losses = task.per_example_loss(model, part.to(device))
            (losses.sum() / len(batch)).backward()
            total += losses.detach().sum()
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        examples, tokens, steps = examples + len(batch), tokens + batch.tokens, steps + 1
    model.eval()
    return {
        "loss": float(total) / max(examples, 1),
        "examples": examples,
        "tokens": tokens,
        "steps": steps,
        "seconds": round(time.monotonic() - started, 3),
    }


@contextmanager
def seeded(key: Sequence[int]) -> Iterator[None]:
    """Within it, dropout and its like draw from `key` (seed, round, client) alone."""
    digest = hashlib.sha256(repr(tuple(key)).encode()).digest()
    with torch.random.fork_rng():
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        yield


def rate(step: int, config: TrainConfig) -> float:
    """The learning rate's factor at a step: warm-up, then the schedule, over config.steps."""
    rising = math.ceil(config.warmup * config.steps)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(config.steps - rising, 1)
    if config.schedule == "linear":
        return max(1.0 - done, 0.0)
    if config.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
    return 1.0
