"""FedEx-LoRA's residual as thin factors, beside dense m×n arithmetic: Llama-3.2-3B, 25 clients.

    python -m benchmarks.residual

One module of each shape that the model has, rank 32. Equality is asserted in float64.
"""

import torch
from torch import Tensor

from benchmarks import models
from benchmarks.harness import Row, interleaved, parser, peak_bytes, report
from fedtuners.adapters.linear import in_out_features, linear_layer
from strategies.algebra import LowRank, dense, residual
from strategies.mean import num_example_weights

MB = 2**20


def shapes() -> dict[tuple[int, int], int]:
    """(out_features, in_features) of Llama-3.2-3B's linear layers, and how many there are."""
    found: dict[tuple[int, int], int] = {}
    for name, layer in models.shapes_only(models.llama_3b).named_modules():
        if name.endswith("_proj"):
            n, m = in_out_features(linear_layer(name, layer))
            found[m, n] = found.get((m, n), 0) + 1
    return found


def uploads(
    m: int, n: int, rank: int, clients: int, dtype: torch.dtype = torch.float32
) -> list[LowRank]:
    """Clients that drifted a tenth of their size away from a common start."""
    draw = torch.Generator().manual_seed(0)

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=draw, dtype=dtype)

    L, R = normal(m, rank), normal(rank, n)
    return [(L + 0.1 * normal(m, rank), R + 0.1 * normal(rank, n)) for _ in range(clients)]


def mean(factors: list[LowRank], weights: list[float]) -> LowRank:
    """(Σ p_i L_i, Σ p_i R_i)."""
    L = sum(weight * L for (L, _), weight in zip(factors, weights, strict=True))
    R = sum(weight * R for (_, R), weight in zip(factors, weights, strict=True))
    return torch.as_tensor(L), torch.as_tensor(R)


def dense_residual(factors: list[LowRank], weights: list[float], middle: LowRank) -> Tensor:
    """Σ p_i L_i R_i − L̄ R̄, m×n."""
    total = -(middle[0] @ middle[1])
    for (L, R), weight in zip(factors, weights, strict=True):
        total.add_(L @ R, alpha=weight)
    return total


def largest_error(rank: int, clients: int) -> float:
    """Largest difference of the two in float64, relative to the largest entry."""
    factors = uploads(300, 200, rank, clients, torch.float64)
    weights = num_example_weights(list(range(1, clients + 1)))
    middle = mean(factors, weights)
    wanted = dense_residual(factors, weights, middle)
    found = dense(residual(factors, weights, middle))
    return float((found - wanted).abs().max() / wanted.abs().max())


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--clients", type=int, default=25)
    options.add_argument("--rank", type=int, default=32)
    parsed = options.parse_args()
    weights = num_example_weights(list(range(1, parsed.clients + 1)))
    rows, total, reference = [], 0.0, 0.0
    for (m, n), count in shapes().items():
        factors = uploads(m, n, parsed.rank, parsed.clients)
        middle = mean(factors, weights)
        calls = {
            "thin": lambda f=factors, c=middle: residual(f, weights, c),
            "dense": lambda f=factors, c=middle: dense_residual(f, weights, c),
        }
        seconds = interleaved(calls, parsed.repeats)
        thin, full = seconds["thin"], seconds["dense"]
        peak = {name: peak_bytes(call) / MB for name, call in calls.items()}
        label = f"{m}×{n} ({count} modules)"
        rows += [
            Row(f"{label}: time", thin.median, full.median, "s", "≤ 1/20", f"{thin} / {full}"),
            Row(f"{label}: peak", peak["thin"], peak["dense"], "MB", "O((m+n)kr)"),
        ]
        total, reference = total + count * thin.median, reference + count * full.median
    error = largest_error(parsed.rank // 8, parsed.clients)
    assert error < 1e-12
    rows += [
        Row("whole model: time", total, reference, "s", "≤ 1/20"),
        Row("float64: largest relative error", error, aim="≤ 1e-12"),
    ]
    report("residual", rows, vars(parsed), parsed.json)


if __name__ == "__main__":
    main()
