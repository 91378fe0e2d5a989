"""What the benchmarks compare is equal where it must be, at sizes that take no time."""

from typing import Any

import pytest
import torch
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import abba_forms, residual, wire
from benchmarks.adapter_step import subjects, trainer
from benchmarks.harness import peak_bytes, saved_bytes
from benchmarks.models import llama
from fedtuners.adapters import LoraSb
from fedtuners.config import TrainConfig
from fedtuners.tasks import DataConfig, batches, make_task
from fedtuners.tasks.batches import Encoded
from fedtuners.training import train


def tiny() -> Any:
    return llama(32, 64, 2, 2, 1, 50)


def encoded(rows: int = 8) -> Encoded:
    items = [
        {
            "input_ids": [3 + i] * (4 + i),
            "attention_mask": [1] * (4 + i),
            "labels": [-100] * 2 + [5] * (2 + i),
        }
        for i in range(rows)
    ]
    return Encoded(tuple(items))  # type: ignore[arg-type]


def test_all_forms_of_abba_agree() -> None:
    abba_forms.check()


def test_the_thin_residual_is_the_dense_one() -> None:
    assert residual.largest_error(rank=4, clients=5) < 1e-12


def test_lora_sb_keeps_less_than_lora_and_than_its_naive_form() -> None:
    ids = torch.randint(3, 50, (4, 16))
    built = subjects(tiny, rank=8, small=8)
    trained = {name: trainer(model, ids) for name, model in built.items()}
    kept = {name: saved_bytes(forward, built[name]) for name, (forward, _) in trained.items()}
    peak = {name: peak_bytes(step) for name, (_, step) in trained.items()}

    assert kept["LoRA-SB"] < min(kept["LoRA"], kept["naive"])
    assert peak["LoRA-SB"] < min(peak["LoRA"], peak["naive"])
    # ABBA's products with x are r1·r2 = 16 wide where LoRA's are 8; of its factors nothing is kept.
    assert kept["ABBA"] - kept["equal LoRA"] == (16 - 8) * ids.numel() * 4 * 14


def test_what_lora_sb_keeps_beyond_the_base_is_as_wide_as_its_rank() -> None:
    ids = torch.randint(3, 50, (4, 16))
    by_rank = {}
    for rank in (4, 8):
        model = LoraSb(rank=rank, init="weights").attach(tiny(), "causal_lm", seed=0)
        by_rank[rank] = saved_bytes(trainer(model, ids)[0], model)

    modules, tokens = 14, ids.numel()
    assert by_rank[8] - by_rank[4] == 4 * tokens * 4 * modules


def test_published_counts_are_met() -> None:
    found = wire.counted(wire.PAPER["BERT-base"])

    assert found["fed_sb"] == pytest.approx(0.100611)
    assert found["fedex_lora"] == pytest.approx(3.539, rel=0.01)


class Copies(TorchDispatchMode):
    """Counts values that are read back to Python, other than by the optimiser."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and not self.paused:
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_no_step_reads_a_value_back(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(DataConfig())
    model = LoraSb(rank=4, init="weights").attach(tiny(), "causal_lm", seed=0)
    copies, step = Copies(), AdamW.step

    def unseen(self: AdamW, closure: None = None) -> None:
        copies.paused = True
        step(self, closure)
        copies.paused = False

    monkeypatch.setattr(AdamW, "step", unseen)
    counts = []
    for steps in (2, 6):
        drawn = list(batches(encoded(), 0, 4, steps, (0, 0, 0)))
        with copies:
            copies.count = 0
            train(model, task, drawn, TrainConfig(steps=steps, max_grad_norm=1.0))
        counts.append(copies.count)

    per_step = (counts[1] - counts[0]) / 4
    with copies:  # transformers itself looks at the mask once a forward pass
        copies.count = 0
        batch = drawn[0]
        task.per_example_loss(model, batch)
    assert per_step <= copies.count
