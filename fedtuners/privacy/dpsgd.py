"""DP-SGD (Abadi et al., arXiv:1607.00133), the private sibling of fedtuners.training.train.

In every step each drawn unit's gradient, over all trained tensors together, is scaled down to norm
C at most; N(0, σ²C²) is added to their sum, and the sum is divided by the *expected* batch, since
the drawn one is private. Per-example gradients are Opacus', by hooks that leave the model as it
is. What a step says of the data leaves this module in the trained tensors alone: no loss and no
count, which no noise protects.
"""

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fedtuners.config import TrainConfig
from fedtuners.optimisers import make_optimiser
from fedtuners.privacy.randomness import Randomness
from fedtuners.privacy.sampling import Draw, Part
from fedtuners.tasks import Task
from fedtuners.training import rate


@dataclass(frozen=True)
class Noise:
    """What DP-SGD adds and divides by.

    Attributes:
        multiplier: σ, the noise's standard deviation in units of the clip.
        clip: C, the norm that one unit's gradient keeps at most.
        expected: q N, the expected number of units in a draw.
    """

    multiplier: float
    clip: float
    expected: float

    def __post_init__(self) -> None:
        if self.clip <= 0 or (self.multiplier > 0 and self.clip == float("inf")):
            raise ValueError(f"privacy.clip={self.clip} must be above 0, and finite with noise")


def private_train(
    model: nn.Module,
    task: Task,
    draws: Iterable[Draw],
    config: TrainConfig,
    noise: Noise,
    randomness: Randomness,
) -> dict[str, int | float]:
    """Take one optimiser step per draw, empty or not; returns steps and seconds.

    Raises:
        ValueError: when a trained tensor gets no per-example gradient, naming it.
    """
    started = time.monotonic()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = make_optimiser(trained, config)
    schedule = LambdaLR(optimiser, lambda step: rate(step, config))
    steps = 0
    model.train()
    with torch.random.fork_rng():
        torch.seed()  # dropout by the run's seed would be a mask that everybody knows
        for gradients in private_gradients(model, task, draws, noise, randomness):
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.grad = gradient
            if config.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            steps += 1
    model.eval()
    return {"steps": steps, "seconds": round(time.monotonic() - started, 3)}


def private_gradients(
    model: nn.Module, task: Task, draws: Iterable[Draw], noise: Noise, randomness: Randomness
) -> Iterator[list[Tensor]]:
    """The noisy gradient of each draw, one tensor per trained parameter: all that is released.

    The model is as it is when a gradient is asked for; it must be in training mode.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with per_example_gradients(model):
        for draw in draws:
            sums = [torch.zeros_like(parameter) for parameter in named.values()]
            for part in draw:
                add_clipped(sums, unit_gradients(model, task, part, named), noise.clip)
            yield [privatised(total, noise, randomness) for total in sums]


@contextmanager
def per_example_gradients(model: nn.Module) -> Iterator[None]:
    """Within it, a backward pass of a sum of losses leaves `grad_sample` on trained parameters."""
    from opacus.grad_sample import GradSampleHooks  # slow to import

    import fedtuners.privacy.abba_gradients  # noqa: F401  # ABBA's, registered with Opacus

    hooks = GradSampleHooks(model, loss_reduction="sum")
    try:
        with warnings.catch_warnings():
            # The first adapted layer's input needs no gradient, which its parameters' do not need.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield
    finally:
        hooks.cleanup()


def unit_gradients(
    model: nn.Module, task: Task, part: Part, named: dict[str, nn.Parameter]
) -> list[Tensor]:
    """Each unit's mean gradient over its rows, (units, *shape) for every trained parameter."""
    device = next(iter(named.values())).device
    task.per_example_loss(model, part.batch.to(device)).sum().backward()
    gradients = []
    for name, parameter in named.items():
        rows = getattr(parameter, "grad_sample", None)
        if not isinstance(rows, Tensor) or len(rows) != len(part.batch):
            raise ValueError(
                f"{name} gets no gradient per example: use one forward pass a step, and "
                "train.gradient_checkpointing=false"
            )
        parameter.grad_sample = parameter.grad = None  # type: ignore[attr-defined]
        gradients.append(unit_means(rows, part))
    return gradients


def unit_means(rows: Tensor, part: Part) -> Tensor:
    """The mean over each unit's rows, (units, …), of something per row, (rows, …)."""
    if part.units == len(rows):
        return rows
    owners = part.owners.to(rows.device)
    counts = torch.bincount(owners, minlength=part.units).to(rows.dtype)
    totals = rows.new_zeros(part.units, *rows.shape[1:]).index_add_(0, owners, rows)
    return totals / counts.view(-1, *[1] * (rows.ndim - 1))


def add_clipped(sums: Sequence[Tensor], gradients: Sequence[Tensor], clip: float) -> None:
    """Add every unit's gradient to the sums, scaled to a joint norm of at most `clip`.

    Args:
        sums: one tensor per parameter.
        gradients: (units, *shape) of each.
        clip: C. A unit whose gradient is not finite is left out: it must not tell of itself.
    """
    factors = clip_factors(gradients, clip)
    for total, rows in zip(sums, gradients, strict=True):
        total += torch.einsum("u,u...->...", factors.to(rows.dtype), finite(rows, factors))


def clip_factors(gradients: Sequence[Tensor], clip: float) -> Tensor:
    """min(1, C / ‖g_u‖) of each unit, (units,); 0 where the norm is not finite."""
    parts = [torch.linalg.vector_norm(rows.flatten(1).float(), dim=1) for rows in gradients]
    norms = torch.linalg.vector_norm(torch.stack(parts, 1), dim=1)
    factors = torch.clamp(clip / norms.clamp(min=torch.finfo(norms.dtype).tiny), max=1.0)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(norms))


def finite(rows: Tensor, factors: Tensor) -> Tensor:
    """The rows, with zeros for units whose factor is 0: 0 · ∞ is not 0."""
    if bool((factors > 0).all()):
        return rows
    kept = (factors > 0).view(-1, *[1] * (rows.ndim - 1))
    return torch.where(kept, rows, torch.zeros_like(rows))


def privatised(total: Tensor, noise: Noise, randomness: Randomness) -> Tensor:
    """(Σ clipped + N(0, σ²C²)) / (q N)."""
    if noise.multiplier > 0:
        total = total + noise.multiplier * noise.clip * randomness.normal(total)
    return total / noise.expected
