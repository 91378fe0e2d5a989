"""Which form of ABBA is quickest, by layer size and tokens: forward and backward of one layer.

    python -m benchmarks.abba_forms

The form in use keeps no factor for the backward pass. Beside it: Khatri–Rao factors held by
autograd; the same in tiles of r1, which never hold (tokens × r1 r2); a merged forward,
(W0 + ΔW) x, with Khatri–Rao factors for the gradients alone; and the materialised product.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.harness import Row, flops, interleaved, parser, peak_bytes, report
from fedtuners.adapters.abba.khatri_rao import khatri_rao, khatri_rao_product

MB = 2**20
SETTINGS = ((512, 512, 8), (512, 512, 16), (1024, 256, 16), (2048, 256, 16), (1024, 2048, 16))
Factors = tuple[Tensor, Tensor, Tensor, Tensor]


def in_use(x: Tensor, W: Tensor, factors: Factors) -> Tensor:
    """What the adapter does."""
    return linear(x, W) + khatri_rao_product(x, *factors, 1.0)


def plain(x: Tensor, W: Tensor, factors: Factors) -> Tensor:
    """The factors are made once and held for the backward pass."""
    L, R = khatri_rao(*factors)
    return linear(x, W) + linear(linear(x, R), L)


def tiled(x: Tensor, W: Tensor, factors: Factors, tile: int = 4) -> Tensor:
    """A few of the r1 rows at a time."""
    A1, B1, A2, B2 = factors
    y = linear(x, W)
    for first in range(0, A1.shape[0], tile):
        rows = slice(first, first + tile)
        y = y + khatri_rao_product(x, A1[rows], B1[:, rows], A2, B2, 1.0)
    return y


def materialised(x: Tensor, W: Tensor, factors: Factors) -> Tensor:
    """The definition."""
    A1, B1, A2, B2 = factors
    return linear(x, W) + linear(x, (B1 @ A1) * (B2 @ A2))


class _Merged(torch.autograd.Function):
    """(W0 + ΔW) x; gradients of the factors by their Khatri–Rao form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, *factors: Tensor) -> Tensor:
        ctx.save_for_backward(x, W, *factors)
        return linear(x, _Merged.weight(W, factors))

    @staticmethod
    def weight(W: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        A1, B1, A2, B2 = factors
        return (B1 @ A1).mul_(B2 @ A2).add_(W)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, W, *factors = ctx.saved_tensors
        A1, B1, A2, B2 = factors
        delta = gradients[0]
        L, R = khatri_rao(A1, B1, A2, B2)
        dL = (delta.T @ linear(x, R)).unflatten(1, (B1.shape[1], B2.shape[1]))
        dR = ((delta @ L).T @ x).unflatten(0, (A1.shape[0], A2.shape[0]))
        return (
            delta @ _Merged.weight(W, tuple(factors)),
            None,
            (dR * A2[None, :, :]).sum(1),
            (dL * B2[:, None, :]).sum(2),
            (dR * A1[:, None, :]).sum(0),
            (dL * B1[:, :, None]).sum(1),
        )


def merged(x: Tensor, W: Tensor, factors: Factors) -> Tensor:
    """One product of the base's size."""
    return _Merged.apply(x, W, *factors)


FORMS = {
    form.__name__.replace("_", " "): form for form in (in_use, plain, tiled, merged, materialised)
}


def layer(size: int, tokens: int, rank: int) -> tuple[Tensor, Tensor, Factors]:
    """x, W0 and factors that all train, for a square layer."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=draw) / size**0.5).requires_grad_()

    factors = (normal(rank, size), normal(size, rank), normal(rank, size), normal(size, rank))
    return normal(tokens, size), normal(size, size).detach(), factors


def check() -> None:
    """All forms have one output and one set of gradients."""
    found = []
    for form in FORMS.values():
        x, W, factors = layer(24, 5, 4)
        y = form(x, W, factors)
        y.square().sum().backward()
        found.append([y.detach(), x.grad, *(factor.grad for factor in factors)])
    for other in found[1:]:
        for value, expected in zip(other, found[0], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def main() -> None:
    """Measure and report."""
    parsed = parser(__doc__).parse_args()
    check()
    rows = []
    for size, tokens, rank in SETTINGS:
        x, W, factors = layer(size, tokens, rank)
        calls = {
            name: lambda form=form, a=(x, W, factors): form(*a).sum().backward()
            for name, form in FORMS.items()
        }
        seconds = interleaved(calls, parsed.repeats)
        best = min(seconds, key=lambda name: seconds[name].median)
        label = f"{size}×{size}, {tokens} tokens, {rank}×{rank}"
        for name, call in calls.items():
            time, other = seconds[name].median, seconds["in use"].median
            peak = f"peak {peak_bytes(call) / MB:.0f} MB, {flops(call) / 1e9:.2f} GFLOP"
            note = peak + (", quickest" if name == best else "")
            rows.append(Row(f"{label}: {name}", time, other, "s", "", note))
    report("abba_forms", rows, vars(parsed), parsed.json)


if __name__ == "__main__":
    main()
