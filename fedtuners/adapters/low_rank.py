"""Low-rank linear algebra shared by the adapters: truncated SVD and truncation of thin factors.

Every matrix is in the orientation of `nn.Linear.weight`: (m, n) = (out_features, in_features).
"""

import torch
from torch import Tensor

# Up to this many rows or columns the full decomposition is exact and takes well under a second.
FULL_SVD_SIZE = 512
ITERATIONS = 6


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular triplets of a matrix.

    Small matrices are decomposed in full; large ones by randomised subspace iteration (Halko et
    al., arXiv 0909.4061) with twice the columns and enough iterations that even for the flat
    spectrum of a sign matrix the leading subspaces agree to .999. Neither touches the global random
    state, and the sign of each triplet is fixed, so that equal matrices give equal factors.

    Args:
        matrix: (m, n).
        rank: number of triplets, at most min(m, n).

    Returns:
        U (m, rank), S (rank,) in descending order, and Vᵀ (rank, n).

    Raises:
        ValueError: when the rank is not within 1..min(m, n).
    """
    size = min(matrix.shape)
    if not 1 <= rank <= size:
        raise ValueError(f"rank {rank} of a {tuple(matrix.shape)} matrix: choose 1..{size}")
    if size <= max(FULL_SVD_SIZE, 4 * rank):
        U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=_devices(matrix)):
            torch.manual_seed(0)
            U, S, V = torch.svd_lowrank(matrix, q=max(2 * rank, rank + 10), niter=ITERATIONS)
        Vh = V.T
    U, S, Vh = U[:, :rank], S[:rank], Vh[:rank]
    sign = _column_signs(U)
    return U * sign, S, Vh * sign[:, None]


def truncate(L: Tensor, R: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best rank-`rank` approximation of L @ R, without forming the product.

    QR of both factors leaves a k×k core whose SVD is that of the product (Eckart–Young).

    Args:
        L: (m, k).
        R: (k, n).
        rank: the rank to keep; factors that already have it or less come back unchanged.

    Returns:
        L' (m, rank), R' (rank, n), and the Frobenius norm of L @ R − L' @ R'.
    """
    if L.shape[1] <= rank:
        return L, R, 0.0
    left, upper = torch.linalg.qr(L.double())
    right, lower = torch.linalg.qr(R.double().T)
    U, S, Vh = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    root = S[:rank].sqrt()
    error = S[rank:].square().sum().sqrt().item()
    kept_left = (left @ U[:, :rank]) * root
    kept_right = root[:, None] * (Vh[:rank] @ right.T)
    return kept_left.to(L.dtype), kept_right.to(R.dtype), error


def norm(L: Tensor, R: Tensor) -> float:
    """‖L R‖_F without forming the product."""
    gram = (L.double().T @ L.double()) * (R.double() @ R.double().T)
    return float(gram.sum().clamp(min=0).sqrt())


def _column_signs(U: Tensor) -> Tensor:
    """±1 per column that makes its entry of largest magnitude positive."""
    largest = U.abs().argmax(dim=0)
    return torch.where(U.gather(0, largest[None]).squeeze(0) < 0, -1.0, 1.0).to(U.dtype)


def _devices(tensor: Tensor) -> list[torch.device]:
    return [tensor.device] if tensor.is_cuda else []
