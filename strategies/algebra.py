"""Pure functions of low-rank matrices: exact residuals, compression, stacks of thin factors.

A state is the named tensors that one participant holds; a low-rank matrix is a pair of thin
factors (L, R) that stands for the product L R. Nothing here knows of messages or of models.

References: FedEx-LoRA, https://arxiv.org/abs/2410.09432; FLoRA, https://arxiv.org/abs/2409.05976.
"""

import math
from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from strategies.checks import check_count, check_finite

State = dict[str, Tensor]
LowRank = tuple[Tensor, Tensor]
"""(L, R) of shapes (m, k) and (k, n), for the m×n matrix L R."""


def residual(
    client_factors: Sequence[LowRank], weights: Sequence[float], mean_factors: LowRank
) -> LowRank:
    """Return Σ p_i L_i R_i − L̄ R̄ as thin factors (FedEx-LoRA, arXiv 2410.09432).

    Adding it to the base weight makes averaging exact: W0 + residual + L̄ R̄ = W0 + Σ p_i L_i R_i.
    The orientation is that of `torch.nn.Linear`, out_features × in_features.

    With L̂ = Σ p_i L_i, R̂ = Σ p_i R_i and any one client c it is

        Σ_{i≠c} p_i (L_i − L_c)(R_i − R̂)  +  (L̂ − L̄) R̂  +  L̄ (R̂ − R̄),

    because Σ p_i (R_i − R̂) = 0: a rank of (k−1)r, from subtractions alone. The last two terms are
    none for averaged LoRA, whose L̄ is L̂ but for rounding. They matter where L̄ R̄ is not made of
    the means, as with Khatri–Rao factors, and for means that lost more, in bfloat16. Terms that are
    rounding error are left out, so that one client, or equal R_i, leave nothing.

    Parameters
    ----------
    client_factors : Sequence[LowRank]
        Each client's (L_i, R_i), of shapes (m, r) and (r, n).
    weights : Sequence[float]
        p_i, which sum to one.
    mean_factors : LowRank
        (L̄, R̄) as the clients will receive them, of shapes (m, r) and (r, n).

    Returns
    -------
    LowRank
        Factors of min((k−1)r, m, n) columns, or 2r more, in float32 (float64 if an input is). To
        truncate them, `compress` them to a rank.

    Raises
    ------
    ValueError
        If the weights do not sum to one or do not fit the clients, or if shapes do not agree.
    """
    check_count(len(client_factors), weights)
    if not math.isclose(math.fsum(weights), 1.0, rel_tol=1e-9) or min(weights) < 0:
        raise ValueError(
            f"the weights of a residual must be at least 0 and sum to 1, but are {list(weights)}: "
            "take num_example_weights of the numbers of examples."
        )
    factors = [*client_factors, mean_factors]
    _check_factors(factors)
    if len({L.shape[1] for L, _ in factors}) > 1:
        raise ValueError("a residual needs factors of one rank: stack those of several ranks.")
    dtype = _result_dtype(factors)
    scale = _bound(*mean_factors) + sum(
        weight * _bound(*pair) for pair, weight in zip(client_factors, weights, strict=True)
    )
    smallest = _tolerance(mean_factors, dtype) * scale
    terms = [
        (L.to(dtype), R.to(dtype))
        for L, R in _deviations(client_factors, weights, mean_factors)
        if _bound(L, R) > smallest
    ]
    (m, _), (_, n) = (factor.shape for factor in mean_factors)
    left = torch.cat([torch.empty(m, 0, dtype=dtype), *(L for L, _ in terms)], dim=1)
    right = torch.cat([torch.empty(0, n, dtype=dtype), *(R for _, R in terms)], dim=0)
    check_finite({"L": left, "R": right})
    return compress((left, right))[0] if left.shape[1] > min(m, n) else (left, right)


def _deviations(
    clients: Sequence[LowRank], weights: Sequence[float], mean: LowRank
) -> Iterator[LowRank]:
    """The terms of `residual`, one at a time, in float64, in which what nearly cancels is kept."""
    L_bar, R_bar = (factor.detach().double() for factor in mean)
    L_hat, R_hat = torch.zeros_like(L_bar), torch.zeros_like(R_bar)
    for (L, R), weight in zip(clients, weights, strict=True):
        L_hat.add_(L.detach(), alpha=weight)
        R_hat.add_(R.detach(), alpha=weight)
    last = clients[-1][0].detach().double()
    for (L, R), weight in zip(clients[:-1], weights[:-1], strict=True):
        yield weight * (L.detach() - last), R.detach() - R_hat
    yield L_hat - L_bar, R_hat
    yield L_bar, R_hat - R_bar


def _bound(L: Tensor, R: Tensor) -> float:
    """‖L‖‖R‖ ≥ ‖L R‖, Frobenius norms."""
    norms = (torch.linalg.vector_norm(factor, dtype=torch.float64) for factor in (L, R))
    return math.prod(float(norm) for norm in norms)


def compress(
    factors: LowRank, rank: int | None = None, tolerance: float | None = None
) -> tuple[LowRank, float]:
    """Return the fewest columns for L R, at most `rank`, and the Frobenius norm of what is lost.

    QR of both factors, then the SVD of the small core, in float64: the m×n matrix is never made.
    Each factor carries the square roots of the singular values, so both have the same scale.

    Parameters
    ----------
    factors : LowRank
        (L, R) of shapes (m, k) and (k, n).
    rank : int | None
        The most columns to keep: the best approximation of that rank (Eckart–Young).
    tolerance : float | None
        Singular values up to tolerance·‖L‖‖R‖ (Frobenius) count as zero. The scale is that of the
        factors, not of the largest singular value, since factors may cancel down to pure rounding
        error. Default: the machine epsilon of the result's dtype. By Weyl's inequality nothing
        that the rounding of L or R to that dtype brings in exceeds it. For float64 results it is
        (m + n + k) times that, for the error of the QR and SVD themselves.

    Returns
    -------
    tuple[LowRank, float]
        Factors in float32 (float64 if an input is), and √Σσ² over the discarded σ.

    Raises
    ------
    ValueError
        If the rank is negative, the shapes do not agree or a value is NaN or infinite.
    """
    if rank is not None and rank < 0:
        raise ValueError(f"a rank must be at least 0, but is {rank}.")
    _check_factors([factors])
    dtype = _result_dtype([factors])
    L, R = (factor.detach().double() for factor in factors)
    check_finite({"L": L, "R": R})
    if tolerance is None:
        tolerance = _tolerance((L, R), dtype)
    scale = float(torch.linalg.norm(L) * torch.linalg.norm(R))
    left, left_core = torch.linalg.qr(L)
    right, right_core = torch.linalg.qr(R.T)
    U, sigma, Vh = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    kept = int((sigma > tolerance * scale).sum())
    kept = kept if rank is None else min(kept, rank)
    root = sigma[:kept].sqrt()
    thin = (left @ U[:, :kept] * root).to(dtype), ((right @ Vh[:kept].T * root).T).to(dtype)
    return thin, float(torch.linalg.norm(sigma[kept:]))


def stack(factors: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """Return Σ w_i L_i R_i as one pair of factors, side by side (FLoRA, arXiv 2409.05976).

    The weights, of any sign, are shared out as √|w_i| on each side, which keeps ‖L‖‖R‖, and with
    it the rounding error, from growing with the number of clients.

    Returns
    -------
    LowRank
        Shapes (m, Σk_i) and (Σk_i, n), in float32 (float64 if an input is).

    Raises
    ------
    ValueError
        If there is nothing to stack, not one weight a pair, or if shapes do not agree.
    """
    check_count(len(factors), weights)
    _check_factors(factors)
    dtype = _result_dtype(factors)
    roots = [math.sqrt(abs(weight)) for weight in weights]
    left = [
        L.detach().double() * math.copysign(root, weight)
        for (L, _), root, weight in zip(factors, roots, weights, strict=True)
    ]
    right = [R.detach().double() * root for (_, R), root in zip(factors, roots, strict=True)]
    return torch.cat(left, dim=1).to(dtype), torch.cat(right, dim=0).to(dtype)


def add(*terms: LowRank) -> LowRank:
    """Return the sum of low-rank matrices, such as the residuals of several rounds, compressed.

    Raises
    ------
    ValueError
        If there is no term, if shapes do not agree or a value is NaN or infinite.
    """
    return compress(stack(terms, [1.0] * len(terms)))[0]


def dense(factors: LowRank) -> Tensor:
    """Return the m×n matrix L R, in float32 (float64 if an input is)."""
    L, R = factors
    dtype = _result_dtype([factors])
    return L.to(dtype) @ R.to(dtype)


def _check_factors(factors: Sequence[LowRank]) -> None:
    rows, columns = factors[0][0].shape[0], factors[0][1].shape[-1]
    for i, (L, R) in enumerate(factors):
        fits = L.ndim == R.ndim == 2 and L.shape[1] == R.shape[0]
        if not fits or (L.shape[0], R.shape[1]) != (rows, columns):
            raise ValueError(
                f"factors {i} have shapes {tuple(L.shape)} and {tuple(R.shape)} "
                f"instead of ({rows}, k) and (k, {columns})."
            )


def _result_dtype(factors: Sequence[LowRank]) -> torch.dtype:
    # Half precision would lose much of a small residual, so results are float32 at least.
    dtypes = [factor.dtype for pair in factors for factor in pair]
    return reduce(torch.promote_types, dtypes, torch.float32)


def _tolerance(factors: LowRank, dtype: torch.dtype) -> float:
    (m, k), n = factors[0].shape, factors[1].shape[1]
    return max(torch.finfo(dtype).eps, (m + n + k) * torch.finfo(torch.float64).eps)
