"""LoRA-SB's start, beside full fp32 gradients of all targets and an exact SVD of their signs.

    python -m benchmarks.start

A random Llama trained for some steps, so that its gradient has directions. Memory is counted above
the model; `group` is what of the gradients is held at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import models
from benchmarks.harness import Row, interleaved, parser, peak_bytes, report
from fedtuners.adapters import Start, estimate_updates, sketch_core, sketch_range
from fedtuners.adapters.estimate import range_basis, start_from_core
from fedtuners.adapters.gradients import weight_gradients

MB = 2**20


def text(batches: int, rows: int, length: int) -> list[Tensor]:
    """Walks through 512 tokens, each drawn near the last one: something to learn."""
    draw = torch.Generator().manual_seed(0)
    steps = torch.randint(-3, 4, (batches, rows, length), generator=draw)
    return list(steps.cumsum(2).remainder(512))


def loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Summed over the rows."""
    return model(input_ids=ids, labels=ids, use_cache=False).loss * len(ids)


def trained(hidden: int, layers: int, batches: list[Tensor]) -> nn.Module:
    """A Llama after one pass over the batches."""
    model = models.llama(hidden, 4 * hidden, layers, hidden // 64, hidden // 256, 512)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for ids in batches:
        loss(model, ids).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return model.requires_grad_(False)


def naive(model: nn.Module, batches: list[Tensor], names: list[str], rank: int) -> dict[str, Start]:
    """All gradients at once, then an exact SVD of each sign matrix."""
    starts = {}
    for name, gradient in weight_gradients(model, batches, loss, names).items():
        U, S, Vh = torch.linalg.svd(-1e-3 * gradient.sign(), full_matrices=False)
        starts[name] = Start(B=U[:, :rank], A=Vh[:rank], S=S[:rank])
    return starts


def sketched(
    model: nn.Module, batches: list[Tensor], names: list[str], rank: int
) -> dict[str, Start]:
    """The federated start with one client: two sketches, no gradient."""
    Y = sketch_range(model, batches, loss, names, rank + 8, seed=0)
    Q = {name: range_basis(value) for name, value in Y.items()}
    Z = sketch_core(model, batches, loss, Q)
    return {name: start_from_core(Q[name], Z[name], rank, 1e-3) for name in names}


def overlap(found: dict[str, Start], exact: dict[str, Start]) -> float:
    """‖Uᵀ U'‖² / r of the left subspaces, the mean over the modules."""
    shares = [
        float((found[name].B.T @ start.B).square().sum() / start.B.shape[1])
        for name, start in exact.items()
    ]
    return sum(shares) / len(shares)


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.set_defaults(repeats=3)
    options.add_argument("--hidden", type=int, default=1024)
    options.add_argument("--layers", type=int, default=2)
    options.add_argument("--rank", type=int, default=32)
    parsed = options.parse_args()
    model = trained(parsed.hidden, parsed.layers, text(12, 4, 64))
    batches, rank = text(1, 8, 64), parsed.rank
    sizes = {n: m.weight.numel() * 4 for n, m in model.named_modules() if n.endswith("_proj")}
    names, largest, decoder = list(sizes), max(sizes.values()), sum(sizes.values()) / parsed.layers

    def ours(held: float) -> Callable[[], dict[str, Start]]:
        return lambda: estimate_updates(model, batches, loss, names, rank, 1e-3, int(held))

    calls = {
        "one module at a time": ours(0),
        "one decoder layer at a time": ours(decoder),
        "sketches": lambda: sketched(model, batches, names, rank),
        "naive": lambda: naive(model, batches, names, rank),
    }
    activations = peak_bytes(lambda: weight_gradients(model, batches, loss, names[-1:]))
    exact = calls["naive"]()
    seconds = interleaved(calls, parsed.repeats, warm_up=0)
    peak = {name: peak_bytes(call) / MB for name, call in calls.items()}
    rows = []
    for name in ("one module at a time", "one decoder layer at a time", "sketches"):
        time, other = seconds[name], seconds["naive"]
        spread = f"{time} / {other}"
        rows += [
            Row(f"{name}: time", time.median, other.median, "s", "≤ 1/3", spread),
            Row(f"{name}: peak above the model", peak[name], peak["naive"], "MB", "one gradient"),
        ]
        if name != "sketches":
            rows.append(
                Row(f"{name}: overlap with exact", overlap(calls[name](), exact), aim="≥ .999")
            )
    rows += [
        Row("largest module's gradient", largest / MB, unit="MB"),
        Row("one pass over the batches, last module alone: peak", activations / MB, unit="MB"),
    ]
    report("start", rows, vars(parsed), parsed.json)


if __name__ == "__main__":
    main()
