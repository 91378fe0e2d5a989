"""Optimisers with 8-bit moments step as AdamW does, and say where they cannot."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from fedtuners import optimisers
from fedtuners.config import ConfigError, TrainConfig
from fedtuners.optimisers import make_optimiser, moment_bytes

CONFIG = TrainConfig(learning_rate=0.01, weight_decay=0.1)
EIGHT = replace(CONFIG, optimizer="adamw_8bit")


def parameters(size: int = 128) -> list[nn.Parameter]:
    """A tensor whose moments are kept in 8 bits, and one that is too small for it."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(size, size), (8, 8)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def stepped(
    config: TrainConfig, steps: int = 5
) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Parameters after some steps with the same random gradients."""
    generator = torch.Generator().manual_seed(1)
    trained = parameters()
    optimiser = make_optimiser(trained, config)
    for _ in range(steps):
        for p in trained:
            p.grad = torch.randn(p.shape, generator=generator)
        optimiser.step()
    return trained, optimiser


def test_the_default_is_adamw_with_the_runs_settings() -> None:
    optimiser = make_optimiser(parameters(), CONFIG)

    assert type(optimiser) is AdamW
    assert (optimiser.defaults["lr"], optimiser.defaults["weight_decay"]) == (0.01, 0.1)


def test_eight_bit_moments_step_as_adamw_but_for_their_rounding() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: fedtuners[cuda]")
    start = parameters()

    (large, small), _ = stepped(EIGHT)
    (exact_large, exact_small), _ = stepped(CONFIG)

    torch.testing.assert_close(small, exact_small, atol=1e-6, rtol=1e-6)
    moved = (exact_large - start[0]).norm()
    assert 0 < (large - exact_large).norm() < 0.1 * moved


def test_moments_take_the_bytes_that_are_planned() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: fedtuners[cuda]")
    for config in (CONFIG, EIGHT):
        trained, optimiser = stepped(config, 1)
        held = sum(
            value.nbytes
            for p in trained
            for name, value in optimiser.state[p].items()
            if name.startswith(("exp_avg", "state", "absmax"))
        )
        assert moment_bytes(trained, config.optimizer) == held


def test_a_missing_library_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimisers.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ConfigError, match=r"pip install 'fedtuners\[cuda\]'"):
        make_optimiser(parameters(), EIGHT)


def test_paging_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimisers.importlib.util, "find_spec", lambda name: object())

    with pytest.raises(ConfigError, match="device=cpu: choose adamw_8bit or adamw"):
        make_optimiser(parameters(), replace(CONFIG, optimizer="paged_adamw_8bit"))
