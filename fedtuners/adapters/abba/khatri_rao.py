"""The Khatri–Rao form of ABBA's Hadamard product (arXiv 2505.14238, theorem 1).

(B1 A1) ⊙ (B2 A2) = L R with rows of L = B1[i] ⊗ B2[i] and columns of R = A1[:, j] ⊗ A2[:, j],
so neither the m×n products nor their Hadamard product are ever formed.
"""

import math

from torch import Tensor


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
