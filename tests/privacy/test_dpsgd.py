"""DP-SGD: gradients by oracle, clipping, noise, and plain training as its limit (property 9)."""

import copy

import pytest
import torch
from models import examples, one_by_one, tuned
from torch import Tensor, nn

from fedtuners.adapters import Abba, Adapter, Lora, LoraSb
from fedtuners.config import TrainConfig
from fedtuners.privacy.dpsgd import (
    Noise,
    add_clipped,
    per_example_gradients,
    private_train,
    unit_gradients,
)
from fedtuners.privacy.randomness import PrivateRandom, SecureRandom
from fedtuners.privacy.sampling import Part
from fedtuners.tasks import collate
from fedtuners.tasks.batches import Batch
from fedtuners.training import train

METHODS: dict[str, tuple[Adapter, str | None]] = {
    "lora": (Lora(rank=4), None),
    "ffa": (Lora(rank=4), "lora_B"),
    "lora_sb": (LoraSb(rank=4, init="weights"), None),
    "abba": (Abba(rank1=2, rank2=2), None),
}
KINDS = ["causal_lm", "classification"]


def setting(kind: str, method: str) -> tuple[nn.Module, object, Batch]:
    adapter, factor = METHODS[method]
    model, task = tuned(kind, adapter, factor)
    return model, task, collate(examples(kind).items, pad=0)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_gradients_equal_one_sample_passes(kind: str, method: str) -> None:
    model, task, batch = setting(kind, method)
    model.double()
    expected = one_by_one(model, task, examples(kind))
    with per_example_gradients(model):
        found = unit_gradients(model, task, Part.of(batch), trained(model))
    for (name, oracle), rows in zip(expected.items(), found, strict=True):
        assert (rows - oracle).norm() <= 1e-6 * oracle.norm(), name


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_give_the_sum_of_the_whole(method: str) -> None:
    model, task, batch = setting("causal_lm", method)
    sums = [[torch.zeros_like(p) for p in trained(model).values()] for _ in range(2)]
    with per_example_gradients(model):
        for total, parts in zip(sums, ([batch], batch.split(2)), strict=True):
            for part in parts:
                rows = unit_gradients(model, task, Part.of(part), trained(model))
                add_clipped(total, rows, clip=0.1)
    for whole, pieces in zip(*sums, strict=True):
        assert torch.allclose(whole, pieces, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_no_noise_no_clip_no_sampling_is_plain_training(kind: str, method: str) -> None:
    # in fp64 (but for the norms' fp32), since Adam makes a whole step of mere rounding
    plain, task, batch = setting(kind, method)
    private = copy.deepcopy(plain.double())
    config = TrainConfig(steps=3, learning_rate=1e-2, schedule="linear")
    train(plain, task, [batch] * 3, config)
    draws = [[Part.of(batch)]] * 3
    noise = Noise(multiplier=0.0, clip=float("inf"), expected=len(batch))
    private_train(private, task, draws, config, noise, PrivateRandom())
    for (name, one), other in zip(trained(plain).items(), trained(private).values(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6), name


def test_the_trained_model_is_left_without_hooks() -> None:
    model, task, batch = setting("causal_lm", "lora")
    before = {name: len(m._forward_hooks) for name, m in model.named_modules()}
    noise = Noise(1.0, 1.0, len(batch))
    private_train(model, task, [[Part.of(batch)]], TrainConfig(steps=1), noise, PrivateRandom())
    assert {name: len(m._forward_hooks) for name, m in model.named_modules()} == before
    assert all(p.grad is None for p in model.parameters())


def test_an_empty_draw_is_a_step_of_noise_alone() -> None:
    model, task, _ = setting("causal_lm", "lora_sb")
    before = {name: p.detach().clone() for name, p in trained(model).items()}
    report = private_train(
        *(model, task, [[]], TrainConfig(steps=1), Noise(1.0, 1.0, 4.0), PrivateRandom())
    )
    assert report["steps"] == 1
    assert all(not torch.equal(before[name], p) for name, p in trained(model).items())


def gradients(scale: float = 1.0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(5, *shape, generator=draw) * scale for shape in ((3, 4), (7,))]


def test_a_unit_moves_the_sum_by_the_clip_at_most() -> None:
    # over all tensors together: clipping each by itself would allow √2 C
    for unit in range(5):
        sums = [torch.zeros(3, 4), torch.zeros(7)]
        add_clipped(sums, [rows[unit : unit + 1] for rows in gradients(10.0)], clip=0.5)
        joint = torch.cat([total.flatten() for total in sums]).norm()
        assert joint == pytest.approx(0.5, rel=1e-5)


def test_short_gradients_are_not_lengthened() -> None:
    sums = [torch.zeros(3, 4), torch.zeros(7)]
    add_clipped(sums, gradients(1e-3), clip=1.0)
    for total, rows in zip(sums, gradients(1e-3), strict=True):
        assert torch.allclose(total, rows.sum(0))


def test_a_gradient_that_is_not_finite_does_not_show() -> None:
    broken = gradients(10.0)
    broken[0][2] = float("nan")
    broken[1][3] = float("inf")
    sums = [torch.zeros(3, 4), torch.zeros(7)]
    add_clipped(sums, broken, clip=1.0)
    kept = [torch.stack([rows[i] for i in (0, 1, 4)]) for rows in gradients(10.0)]
    expected = [torch.zeros(3, 4), torch.zeros(7)]
    add_clipped(expected, kept, clip=1.0)
    for total, oracle in zip(sums, expected, strict=True):
        assert torch.allclose(total, oracle)


def test_units_of_several_rows_are_their_mean_gradient() -> None:
    model, task, batch = setting("causal_lm", "lora_sb")
    expected = one_by_one(model, task, examples("causal_lm"))
    part = Part(batch, torch.tensor([0, 0, 1, 1, 1, 2]), 3)
    with per_example_gradients(model):
        found = unit_gradients(model, task, part, trained(model))
    for oracle, rows in zip(expected.values(), found, strict=True):
        means = torch.stack([oracle[:2].mean(0), oracle[2:5].mean(0), oracle[5]])
        assert torch.allclose(rows, means, atol=1e-6)


@pytest.mark.parametrize("randomness", [PrivateRandom(), SecureRandom()])
def test_noise_is_standard_normal_and_never_twice_the_same(randomness: SecureRandom) -> None:
    like = torch.zeros(200, 200)
    one, other = randomness.normal(like), randomness.normal(like)
    assert abs(one.std() - 1) < 0.02
    assert abs(one.mean()) < 0.02
    assert abs((one * other).mean()) < 0.02  # uncorrelated
    assert abs((one**4).mean() - 3) < 0.2  # and no other distribution of that variance
    uniform = randomness.uniform(20_000)
    assert 0 <= uniform.min() < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.02


def test_the_runs_seed_does_not_fix_the_noise() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        draws.append(PrivateRandom().normal(torch.zeros(4)))
    assert not torch.equal(*draws)


def test_the_runs_seed_does_not_fix_dropout() -> None:
    model, task, batch = setting("causal_lm", "lora")
    drawn = []

    class Watching:
        def per_example_loss(self, model: nn.Module, batch: Batch) -> Tensor:
            drawn.append(torch.rand(4))  # as a dropout's mask is drawn
            return task.per_example_loss(model, batch)  # type: ignore[attr-defined, no-any-return]

    for _ in range(2):
        torch.manual_seed(7)
        draws = [[Part.of(batch)]]
        config, noise = TrainConfig(steps=1), Noise(1.0, 1.0, len(batch))
        private_train(model, Watching(), draws, config, noise, PrivateRandom())  # type: ignore[arg-type]
        drawn.append(torch.rand(4))
    first, after, second, again = drawn
    assert not torch.equal(first, second)
    assert torch.equal(after, again)  # and what follows is by the seed again


def test_settings_without_a_bound_are_refused() -> None:
    with pytest.raises(ValueError, match=r"privacy\.clip"):
        Noise(1.0, float("inf"), 4.0)
    model, task, batch = setting("causal_lm", "lora")
    with pytest.raises(ValueError, match="gets no gradient per example"):
        unit_gradients(model, task, Part.of(batch), trained(model))
