"""LoRA-SB's start from the clients, privately: clipped, noised sketches of their gradients.

The two sketches are those of fedtuners.adapters.estimate: Y = G Ω of the gradient G of every
adapted weight, then Z = Gᵀ Q. What is released is a sketch, so what is clipped is a sketch: each
unit's, over all modules together. The bound then holds whatever Ω and Q are, even those of a server
that means ill. Each of the two is one Poisson-subsampled Gaussian mechanism.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fedtuners.adapters.estimate import gaussian
from fedtuners.adapters.gradients import accumulate
from fedtuners.adapters.state import base_layer
from fedtuners.privacy.dpsgd import Noise, add_clipped, privatised, unit_means
from fedtuners.privacy.randomness import Randomness
from fedtuners.privacy.sampling import Draw, Part
from fedtuners.tasks import Task

Product = Callable[[str, Tensor, Tensor], Tensor]
"""(module, δ (rows, tokens, m), x (rows, tokens, n)) -> each row's sketch (rows, …)."""


def private_range(
    model: nn.Module,
    task: Task,
    draw: Draw,
    shapes: Mapping[str, tuple[int, int]],
    width: int,
    seed: int,
    noise: Noise,
    randomness: Randomness,
) -> dict[str, Tensor]:
    """A client's first sketch, clipped and noised: Y (m, k) of each module, on the CPU.

    Args:
        draw: one Poisson draw.
        shapes: (m, n) of each module.
        width: k, no more than min(m, n).
        seed: the clients' common seed of Ω, here of variance 1/k, so that the sketch of a gradient
            is about as long as the gradient.
    """
    omegas = {name: gaussian(base_layer(model, name), name, width, seed) for name in shapes}

    def product(name: str, delta: Tensor, x: Tensor) -> Tensor:
        omega = omegas[name].to(x) / omegas[name].shape[1] ** 0.5
        return delta.transpose(1, 2) @ (x @ omega)

    zeros = {name: torch.zeros(m, min(width, m, n)) for name, (m, n) in shapes.items()}
    return _noised(model, task, draw, zeros, product, noise, randomness)


def private_core(
    model: nn.Module,
    task: Task,
    draw: Draw,
    bases: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, int]],
    noise: Noise,
    randomness: Randomness,
) -> dict[str, Tensor]:
    """A client's second sketch, clipped and noised: Z (n, k) of each module, on the CPU.

    Args:
        bases: Q (m, k) of each module.
    """

    def product(name: str, delta: Tensor, x: Tensor) -> Tensor:
        return x.transpose(1, 2) @ (delta @ bases[name].to(x))

    zeros = {name: torch.zeros(shapes[name][1], Q.shape[1]) for name, Q in bases.items()}
    return _noised(model, task, draw, zeros, product, noise, randomness)


def _noised(
    model: nn.Module,
    task: Task,
    draw: Draw,
    zeros: dict[str, Tensor],
    product: Product,
    noise: Noise,
    randomness: Randomness,
) -> dict[str, Tensor]:
    sums = list(zeros.values())
    for part in draw:
        sketches = unit_sketches(model, task, part, list(zeros), product)
        add_clipped(sums, [sketches[name].cpu() for name in zeros], noise.clip)
    released = [privatised(total, noise, randomness) for total in sums]
    return dict(zip(zeros, released, strict=True))


def unit_sketches(
    model: nn.Module, task: Task, part: Part, modules: list[str], product: Product
) -> dict[str, Tensor]:
    """Each unit's sketch of its mean gradient, (units, …) per module, before any clipping."""
    rows = len(part.batch)
    device = next(model.parameters()).device

    def each_row(name: str, delta: Tensor, x: Tensor) -> Tensor:
        return product(name, delta.unflatten(0, (rows, -1)), x.unflatten(0, (rows, -1)))

    def loss(model: nn.Module, part: Part) -> Tensor:
        return task.per_example_loss(model, part.batch.to(device)).sum()

    found = accumulate(model, [part], loss, modules, each_row)
    return {name: unit_means(value, part) for name, value in found.items()}
