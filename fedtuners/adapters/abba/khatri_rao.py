"""The Khatri–Rao form of ABBA's Hadamard product (arXiv 2505.14238, theorem 1).

(B1 A1) ⊙ (B2 A2) = L R with rows of L = B1[i] ⊗ B2[i] and columns of R = A1[:, j] ⊗ A2[:, j],
so neither the m×n products nor their Hadamard product are ever formed.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


def khatri_rao(A1: Tensor, B1: Tensor, A2: Tensor, B2: Tensor) -> tuple[Tensor, Tensor]:
    """Thin factors of the Hadamard product of two low-rank matrices.

    Args:
        A1: (r1, n).
        B1: (m, r1).
        A2: (r2, n).
        B2: (m, r2).

    Returns:
        L (m, r1·r2) and R (r1·r2, n) with L @ R = (B1 @ A1) * (B2 @ A2).
    """
    L = (B1[:, :, None] * B2[:, None, :]).flatten(1)
    R = (A1[:, None, :] * A2[None, :, :]).flatten(0, 1)
    return L, R


def abba_scale(alpha: float, r1: int, r2: int) -> float:
    """s = α² / √(r1 r2) (arXiv 2505.14238, section 2.3)."""
    return alpha**2 / math.sqrt(r1 * r2)


def khatri_rao_product(
    x: Tensor, A1: Tensor, B1: Tensor, A2: Tensor, B2: Tensor, scale: float
) -> Tensor:
    """scale · L R x, (…, n) -> (…, m), with the factors of `khatri_rao`.

    The factors are r1·r2 wide and cheap to make, so the backward pass makes them anew instead of
    having every layer of the model hold its own until then.
    """
    product, _ = _Product.apply(x, A1, B1, A2, B2, scale)
    return product


class _Product(torch.autograd.Function):
    """(scale · L R x, scale · R x); the second, r1·r2 wide, is kept for the backward pass."""

    generate_vmap_rule = True  # per-sample gradients come from torch.func

    @staticmethod
    def forward(
        x: Tensor, A1: Tensor, B1: Tensor, A2: Tensor, B2: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        L, R = khatri_rao(A1, B1, A2, B2)
        core = linear(x, R) * scale
        return linear(core, L), core

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, A1, B1, A2, B2, core = ctx.saved_tensors
        dtype = gradients[0].dtype  # half precision under autocast
        delta = gradients[0].flatten(0, -2)
        L, R = (factor.to(dtype) for factor in khatri_rao(A1, B1, A2, B2))
        passed = (delta @ L) * ctx.scale
        dL = (delta.T @ core.to(dtype).flatten(0, -2)).unflatten(1, (B1.shape[1], B2.shape[1]))
        dR = (passed.T @ x.to(dtype).flatten(0, -2)).unflatten(0, (A1.shape[0], A2.shape[0]))
        dx = (passed @ R).view_as(x).to(x.dtype) if ctx.needs_input_grad[0] else None
        return (
            dx,
            (dR * A2[None, :, :]).sum(1),
            (dL * B2[:, None, :]).sum(2),
            (dR * A1[:, None, :]).sum(0),
            (dL * B1[:, :, None]).sum(1),
            None,
        )
