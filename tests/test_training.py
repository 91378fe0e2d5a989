"""One client's round of training: the gradient it follows, its schedule, and that it repeats."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.optim import SGD

from fedtuners import training
from fedtuners.adapters import adapter_state, load_state
from fedtuners.config import TrainConfig
from fedtuners.tasks import Batch, batches, load
from fedtuners.training import rate, seeded, train
from fedtuners.tuned import TunedModel

Settings = Callable[..., Any]


@pytest.fixture
def tuned(settings: Settings) -> TunedModel:
    return TunedModel(settings("adapter=lora", "strategy=fedavg_lora"))


def drawn(tuned: TunedModel, steps: int = 3, size: int = 4) -> list[Batch]:
    rows = load(tuned.config.data, 0).train
    encoded = tuned.task.encode(rows, tuned.tokenizer)
    return list(batches(encoded, tuned.pad, size, steps, (0, 1, 0)))


def trained(tuned: TunedModel, config: TrainConfig, **draw: int) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(tuned.model)
    train(model, tuned.task, drawn(tuned, **draw), config)
    return adapter_state(model)


def test_the_weights_move_and_the_base_does_not(tuned: TunedModel) -> None:
    before = {name: p.clone() for name, p in tuned.model.named_parameters()}

    measured = train(tuned.model, tuned.task, drawn(tuned), TrainConfig(steps=3))

    moved = {n for n, p in tuned.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in tuned.model.named_parameters() if p.requires_grad}
    assert measured["steps"] == 3
    assert measured["examples"] == 12
    assert measured["tokens"] == sum(batch.tokens for batch in drawn(tuned))
    assert not tuned.model.training
    assert all(parameter.grad is None for parameter in tuned.model.parameters())


def test_the_loss_falls(tuned: TunedModel) -> None:
    config = TrainConfig(steps=30, learning_rate=0.02)

    first = train(tuned.model, tuned.task, drawn(tuned, 5, 16), config)["loss"]
    last = train(tuned.model, tuned.task, drawn(tuned, 30, 16), config)
    after = train(tuned.model, tuned.task, drawn(tuned, 5, 16), config)["loss"]

    assert after < first
    assert last["steps"] == 30


@pytest.mark.parametrize("adapter", ["lora", "lora_sb", "abba"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_give_the_gradient_of_the_whole(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, adapter: str, size: int
) -> None:
    """Plain gradient descent shows the gradient itself, which AdamW's first step only signs."""
    monkeypatch.setattr(training, "make_optimiser", lambda trained, _: SGD(trained, lr=1.0))
    tuned = TunedModel(settings(f"adapter={adapter}", "strategy=fedavg_lora"))
    start = {name: torch.randn_like(value) * 0.1 for name, value in tuned.untouched.items()}
    load_state(tuned.model, start)
    config = TrainConfig()

    whole = trained(tuned, config, steps=1)
    parts = trained(tuned, replace(config, micro_batch=size), steps=1)

    assert any((whole[name] - value).abs().max() > 1e-3 for name, value in start.items())
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-5)


def test_a_round_repeats_bit_for_bit(tuned: TunedModel) -> None:
    first, second = trained(tuned, TrainConfig()), trained(tuned, TrainConfig())

    assert all(torch.equal(second[name], value) for name, value in first.items())


def test_a_step_that_failed_leaves_nothing_to_the_next_client(tuned: TunedModel) -> None:
    """The model is loaded once a process, and an out-of-memory error may end a round midway."""
    config, start = TrainConfig(steps=1, micro_batch=2), copy.deepcopy(tuned.untouched)
    alone = trained(tuned, config, steps=1)

    class Failing:
        def per_example_loss(self, model: Any, batch: Batch) -> torch.Tensor:
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 2:
                raise RuntimeError("out of memory")
            return -5 * tuned.task.per_example_loss(model, batch)

    with pytest.raises(RuntimeError, match="out of memory"):
        train(tuned.model, Failing(), drawn(tuned, 1), config)  # type: ignore[arg-type]
    load_state(tuned.model, start)
    after = trained(tuned, config, steps=1)

    assert all(torch.equal(after[name], value) for name, value in alone.items())


def test_a_gradient_is_cut_to_its_norm(tuned: TunedModel) -> None:
    """AdamW scales a gradient away, but not how two steps of unlike gradients compare."""
    free = trained(tuned, TrainConfig(learning_rate=0.01))
    cut = trained(tuned, TrainConfig(learning_rate=0.01, max_grad_norm=1e-6))

    assert any(not torch.equal(cut[name], value) for name, value in free.items())


def test_draws_within_a_seed_are_those_of_its_key() -> None:
    def draw(key: tuple[int, ...]) -> torch.Tensor:
        with seeded(key):
            return torch.rand(3)

    torch.manual_seed(5)
    before = torch.get_rng_state()

    assert torch.equal(draw((0, 1, 2)), draw((0, 1, 2)))
    assert not torch.equal(draw((0, 1, 2)), draw((0, 2, 1)))
    assert torch.equal(torch.get_rng_state(), before)


# --- the schedule ------------------------------------------------------------------------------


def rates(**settings: Any) -> list[float]:
    config = TrainConfig(steps=10, **settings)
    return [rate(step, config) for step in range(10)]


def test_constant() -> None:
    assert rates() == [1.0] * 10


def test_linear_falls_to_nearly_nothing() -> None:
    assert rates(schedule="linear") == pytest.approx([1 - step / 10 for step in range(10)])


def test_cosine_falls_from_one_and_never_below_zero() -> None:
    values = rates(schedule="cosine")

    assert values[0] == 1.0
    assert values[5] == pytest.approx(0.5)
    assert values == sorted(values, reverse=True)
    assert values[-1] > 0


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_warm_up_rises_and_every_step_counts(schedule: str) -> None:
    values = rates(schedule=schedule, warmup=0.3)

    assert values[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert all(value > 0 for value in values)
    assert max(values) == 1.0


def test_epochs_decide_the_steps() -> None:
    assert TrainConfig(steps=7).resolved(100).steps == 7
    assert TrainConfig(epochs=2, batch_size=32).resolved(100).steps == 8
