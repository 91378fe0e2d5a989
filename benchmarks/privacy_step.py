"""The step time of private training beside plain training, for every adapter, in one run.

    python -m benchmarks.privacy_step --hidden 512 --layers 4 --rows 16 --length 128

Both take whole training steps by the project's own loops (fedtuners.training.train and
fedtuners.privacy.dpsgd.private_train) on the same batch of a random Llama. The last rows say
whether ghost clipping (arXiv:2110.05679) would pay: it spares the memory of per-example gradients
for the arithmetic of their norms.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Row, flops, interleaved, parser, peak_bytes, report
from benchmarks.models import llama
from fedtuners.adapters import Abba, Adapter, Lora, LoraSb, freeze_all_but
from fedtuners.config import TrainConfig
from fedtuners.privacy.dpsgd import Noise, private_train
from fedtuners.privacy.randomness import PrivateRandom
from fedtuners.privacy.sampling import Part
from fedtuners.tasks import Batch, DataConfig, make_task
from fedtuners.training import train

STEPS = 2  # of one timed turn
MB = 2**20


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--hidden", type=int, default=512)
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--rank", type=int, default=16, help="LoRA's; LoRA-SB has four times it")
    options.add_argument("--rows", type=int, default=16)
    options.add_argument("--length", type=int, default=128, help="tokens of a row")
    parsed = options.parse_args()
    shape = (parsed.rows, parsed.length)
    ids = torch.randint(3, 1000, shape)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch = Batch(inputs, ids, (parsed.length,) * parsed.rows)
    half = parsed.rank // 2
    methods: dict[str, tuple[Adapter, bool]] = {
        "LoRA": (Lora(rank=parsed.rank), False),
        "FFA-LoRA": (Lora(rank=parsed.rank), True),
        "LoRA-SB": (LoraSb(rank=4 * parsed.rank, init="weights"), False),
        "ABBA": (Abba(rank1=half, rank2=half), False),
    }
    calls: dict[str, Callable[[], Any]] = {}
    for name, (adapter, only_b) in methods.items():
        base = llama(parsed.hidden, 4 * parsed.hidden, parsed.layers, 8, 8, vocabulary=1024)
        model = adapter.attach(base, "causal_lm", seed=0)
        if only_b:
            freeze_all_but(model, adapter.linear_factor)
        plain, private = steps(model, batch)
        calls |= {name: plain, f"{name}, private": private}
    seconds = interleaved(calls, parsed.repeats)
    peak = {name: peak_bytes(call) / MB for name, call in calls.items()}
    rows = [
        Row(
            f"{name}: private / plain step",
            seconds[f"{name}, private"].median / STEPS,
            seconds[name].median / STEPS,
            "s",
            "≤ 1.2" if name == "LoRA-SB" else "",
        )
        for name in methods
    ]
    rows += [
        Row(f"{name}: private / plain peak", peak[f"{name}, private"], peak[name], "MB")
        for name in methods
    ]
    rows.append(ghost(parsed.hidden, parsed.rank, parsed.rows, parsed.length))
    about = {key: getattr(parsed, key) for key in ("hidden", "layers", "rank", "rows", "length")}
    report("privacy_step", rows, about, parsed.json)


def ghost(hidden: int, rank: int, rows: int, length: int) -> Row:
    """Arithmetic of the norms of LoRA's A alone beside that of its per-example gradients."""
    from opacus.grad_sample.linear import compute_linear_grad_sample, compute_linear_norm_sample

    A = nn.Linear(hidden, rank, bias=False)
    given = [torch.randn(rows, length, hidden)], torch.randn(rows, length, rank)
    norms, gradients = (
        flops(lambda rule=rule: rule(A, *given)) / 1e6
        for rule in (compute_linear_norm_sample, compute_linear_grad_sample)
    )
    return Row("LoRA's A: ghost norms / per-example gradients", norms, gradients, "MFLOP")


def steps(model: nn.Module, batch: Batch) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(plain training, private training) of STEPS steps."""
    task, config = make_task(DataConfig()), TrainConfig(steps=STEPS, learning_rate=1e-5)
    noise, draws = Noise(1.0, 1.0, len(batch)), [[Part.of(batch)]] * STEPS

    def plain() -> None:
        train(model, task, [batch] * STEPS, config)

    def private() -> None:
        private_train(model, task, draws, config, noise, PrivateRandom())

    return plain, private


if __name__ == "__main__":
    main()
