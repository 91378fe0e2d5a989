"""The update estimate: exact against autograd, sign of the sum, and the federated sketch."""

import pytest
import torch
from tiny_models import gpt2, llama, tokens
from torch import Tensor, nn
from torch.testing import assert_close

from fedtuners.adapters import (
    LoraSb,
    adapter_state,
    estimate_updates,
    modules,
    range_basis,
    set_start,
    sketch_core,
    sketch_range,
    start_from_core,
)
from fedtuners.adapters.estimate import start_from_gradient
from fedtuners.adapters.gradients import weight_gradients
from fedtuners.adapters.low_rank import truncated_svd

BATCHES = [tokens(2, 5), tokens(3, 4), tokens(1, 6)]


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(input_ids=batch, labels=batch).loss


def adapted(make: type = llama, dtype: torch.dtype = torch.float64) -> nn.Module:
    return LoraSb(rank=4).attach(make().to(dtype), "causal_lm", seed=0)


def true_gradients(make: type, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """∇_W of the summed losses by autograd on the weights themselves, in nn.Linear orientation."""
    base = make().to(dtype)
    for batch in BATCHES:
        loss(base, batch).backward()
    gradients = {}
    for path in modules(adapted(make)):
        gradient = base.get_submodule(path).weight.grad
        gradients[path] = gradient.T if make is gpt2 else gradient
    return gradients


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_gradients_without_touching_the_weights(
    make: type, dtype: torch.dtype, tolerance: float
) -> None:
    model = adapted(make, dtype)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    gradients = weight_gradients(model, BATCHES, loss, list(modules(model)))
    for path, expected in true_gradients(make, dtype).items():
        assert_close(gradients[path], expected, atol=tolerance, rtol=tolerance)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert all(p.grad is None for p in model.parameters())
    assert not any(layer._forward_hooks for layer in modules(model).values())


@pytest.mark.parametrize("checkpointing", [{"use_reentrant": False}, {"use_reentrant": True}])
def test_gradients_under_checkpointing(checkpointing: dict[str, bool]) -> None:
    model = adapted()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(checkpointing)
    model.train()
    gradients = weight_gradients(model, BATCHES, loss, list(modules(model)))
    for path, expected in true_gradients(llama).items():
        assert_close(gradients[path], expected, atol=1e-12, rtol=1e-12)


def test_layers_that_share_a_weight_get_a_gradient_each() -> None:
    """The shared weight's gradient is their sum; each module has an adapter of its own."""
    base = llama().double()
    first, second = (layer.mlp.up_proj for layer in base.model.layers)
    second.weight = first.weight
    loss(base, BATCHES[0]).backward()
    expected = first.weight.grad
    paths = [f"model.layers.{i}.mlp.up_proj" for i in range(2)]
    gradients = weight_gradients(base, BATCHES[:1], loss, paths)
    assert_close(gradients[paths[0]] + gradients[paths[1]], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("max_gradient_bytes", [0, 4000, 2**31])
def test_estimate_is_the_svd_of_the_sign_of_the_sum(max_gradient_bytes: int) -> None:
    model, rate = adapted(), 0.01
    starts = estimate_updates(
        model, BATCHES, loss, modules(model), 4, rate, max_gradient_bytes=max_gradient_bytes
    )
    for path, gradient in true_gradients(llama).items():
        U, S, Vh = truncated_svd(-rate * gradient.sign(), 4)
        B, A, singular = starts[path]
        assert_close(B @ torch.diag(singular) @ A, U * S @ Vh, atol=1e-12, rtol=1e-9)


def test_sum_of_signs_is_another_start() -> None:
    """Known to be wrong: the sign of each batch's gradient, summed."""
    path = "model.layers.0.mlp.up_proj"
    per_batch = [weight_gradients(adapted(), [b], loss, [path])[path] for b in BATCHES]
    right = start_from_gradient(torch.stack(per_batch).sum(0), 4, 0.01)
    wrong = -0.01 * torch.stack(per_batch).sign().sum(0)
    difference = right.B @ torch.diag(right.S) @ right.A - wrong
    assert difference.norm() > 0.5 * wrong.norm()


def test_the_start_lowers_the_loss() -> None:
    model = adapted()
    before = sum(loss(model, batch).item() for batch in BATCHES)
    set_start(model, estimate_updates(model, BATCHES, loss, modules(model), 4, 1e-3))
    after = sum(loss(model, batch).item() for batch in BATCHES)
    assert after < before
    assert all(value.any() for value in adapter_state(model).values())


def test_unused_modules_and_wrong_names_are_errors() -> None:
    model = llama()
    model.unused = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="no gradient reaches unused"):
        weight_gradients(model, BATCHES, loss, ["unused", "model.layers.0.mlp.up_proj"])
    with pytest.raises(ValueError, match=r"no module model\.layers\.7"):
        weight_gradients(model, BATCHES, loss, ["model.layers.7"])
    with pytest.raises(ValueError, match="use_reentrant=False"):
        weight_gradients(
            model, BATCHES, lambda m, b: torch.zeros(()), ["model.layers.0.mlp.up_proj"]
        )


class Planted(nn.Module):
    """One linear layer whose gradient Σ δᵀx is a low-rank matrix plus noise."""

    def __init__(self, m: int, n: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n, m, bias=False, dtype=torch.float64)


def planted_loss(model: Planted, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, delta = batch
    return (model.linear(x) * delta).sum()


def planted_batches(noise: float, m: int = 60, n: int = 50) -> list[tuple[Tensor, Tensor]]:
    """Two clients' batches; the gradient of both together has rank 5, but for the noise."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    left, right = randn(m, 5), randn(5, n)
    batches = []
    for _ in range(2):
        gradient = left @ torch.diag(randn(5).abs() + 1) @ right + noise * randn(m, n)
        batches.append((torch.eye(n, dtype=torch.float64), gradient.T))
    return batches


def federated_start(
    batches: list[tuple[Tensor, Tensor]], rank: int, oversampling: int, rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Two clients and a server, as the messages go."""
    model, width = Planted(60, 50), rank + oversampling
    ranges = [sketch_range(model, [b], planted_loss, ["linear"], width, seed=7) for b in batches]
    Q = range_basis(ranges[0]["linear"] + ranges[1]["linear"])
    cores = [sketch_core(model, [b], planted_loss, {"linear": Q}) for b in batches]
    return start_from_core(Q, cores[0]["linear"] + cores[1]["linear"], rank, rate)


def overlap(first: Tensor, second: Tensor) -> float:
    """Mean squared cosine between two subspaces given by orthonormal columns; 1 when equal."""
    return ((first.T @ second).square().sum() / first.shape[1]).item()


def test_sketches_of_the_clients_give_the_start_of_their_sum() -> None:
    """Exact where the summed gradient has the rank: nothing is lost by never pooling it."""
    batches, rate = planted_batches(noise=0.0), 0.01
    total = sum(delta.T for _, delta in batches)
    B, A, S = federated_start(batches, rank=5, oversampling=3, rate=rate)
    expected = -total / total.norm() * rate * (60 * 50) ** 0.5
    assert_close(B @ torch.diag(S) @ A, expected, atol=1e-12, rtol=1e-9)
    eye = torch.eye(5, dtype=torch.float64)
    assert_close(B.T @ B, eye, atol=1e-12, rtol=0)
    assert_close(A @ A.T, eye, atol=1e-12, rtol=0)
    assert (S[:-1] >= S[1:]).all()


def test_sketch_finds_the_leading_subspaces_under_noise() -> None:
    batches = planted_batches(noise=0.1)
    U, _, Vh = truncated_svd(sum(delta.T for _, delta in batches), 5)
    B, A, _ = federated_start(batches, rank=5, oversampling=8, rate=0.01)
    assert overlap(U, B) > 0.99
    assert overlap(Vh.T, A.T) > 0.99


def test_sketches_of_a_model_are_those_of_its_gradients() -> None:
    model = adapted()
    paths = list(modules(model))
    ranges = sketch_range(model, BATCHES, loss, paths, width=12, seed=1)
    again = sketch_range(llama().double(), BATCHES, loss, paths, width=12, seed=1)
    bases = {path: range_basis(Y) for path, Y in ranges.items()}
    cores = sketch_core(model, BATCHES, loss, bases)
    for path, gradient in true_gradients(llama).items():
        assert torch.equal(ranges[path], again[path])
        assert ranges[path].shape == (gradient.shape[0], min(12, *gradient.shape))
        assert_close(cores[path], gradient.T @ bases[path], atol=1e-12, rtol=1e-9)


def test_bfloat16_base_gives_full_precision_gradients() -> None:
    model = llama().bfloat16()
    gradients = weight_gradients(model, BATCHES, loss, ["model.layers.0.mlp.up_proj"])
    assert gradients["model.layers.0.mlp.up_proj"].dtype == torch.float32
