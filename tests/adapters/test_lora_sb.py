"""LoRA-SB: the start, the gradient of R, and what is kept for the backward pass."""

import pytest
import torch
from tiny_models import gpt2, llama, perturb, tokens
from torch import Tensor, nn
from torch.testing import assert_close

from fedtuners.adapters import (
    LoraSb,
    adapter_state,
    by_module,
    modules,
    set_start,
    start_from_core,
    start_state,
    trainable_names,
)
from fedtuners.adapters.base import Start
from fedtuners.adapters.estimate import start_from_gradient
from fedtuners.adapters.low_rank import truncated_svd
from fedtuners.adapters.state import tuner_layers

RANK = 4


def random_gradient(m: int = 40, n: int = 30) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(m, n, generator=generator, dtype=torch.float64)
    gradient[0, :5] = 0.0
    return gradient


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_start_from_gradient(dtype: torch.dtype, tolerance: float) -> None:
    """Property 4: orthonormal factors, descending S, the SVD's tail as error, all of η² nnz(g)."""
    gradient, rate = random_gradient().to(dtype), 0.5
    B, A, S = start_from_gradient(gradient, RANK, rate)
    delta = -rate * gradient.sign()
    sigma = torch.linalg.svdvals(delta)

    eye = torch.eye(RANK, dtype=dtype)
    assert_close(B.T @ B, eye, atol=tolerance, rtol=0)
    assert_close(A @ A.T, eye, atol=tolerance, rtol=0)
    assert (S[:-1] >= S[1:]).all()
    assert (S > 0).all()
    error = (delta - B @ torch.diag(S) @ A).square().sum()
    assert_close(error, sigma[RANK:].square().sum(), atol=0, rtol=tolerance)
    nonzero = (rate**2 * gradient.count_nonzero()).to(dtype)
    assert_close(sigma.square().sum(), nonzero, atol=0, rtol=tolerance)


def test_start_descends() -> None:
    gradient = random_gradient()
    B, A, S = start_from_gradient(gradient, RANK, 0.1)
    assert (gradient * (B @ torch.diag(S) @ A)).sum() < 0


def starts_for(model: nn.Module) -> dict[str, Start]:
    generator = torch.Generator().manual_seed(3)
    starts = {}
    for path, layer in tuner_layers(model).items():
        gradient = torch.randn(layer.out_features, layer.in_features, generator=generator)
        starts[path] = start_from_gradient(gradient.double(), RANK, 0.01)
    return starts


@pytest.mark.parametrize("make", [llama, gpt2])
def test_set_start_adds_the_rank_r_update_to_the_weight(make: type) -> None:
    adapter = LoraSb(rank=RANK)
    model = adapter.attach(make().double(), "causal_lm", seed=0)
    starts = starts_for(model)
    set_start(model, starts)
    state = by_module(adapter_state(model))
    for path, (B, A, S) in starts.items():
        assert_close(adapter.delta(state[path]), B @ torch.diag(S) @ A, atol=1e-12, rtol=0)
    expected = start_state(starts)
    assert expected.keys() == adapter_state(model).keys()
    assert all(torch.equal(expected[k], v) for k, v in adapter_state(model).items())


def test_set_start_names_what_does_not_match() -> None:
    model = LoraSb(rank=RANK).attach(llama(), "causal_lm", seed=0)
    starts = starts_for(model)
    path = "model.layers.0.self_attn.q_proj"
    start = starts.pop(path)
    with pytest.raises(ValueError, match=path):
        set_start(model, starts)
    starts[path] = Start(start.B[:, :2], start.A[:2], start.S[:2])
    with pytest.raises(ValueError, match="estimate it with the adapter's rank"):
        set_start(model, starts)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_gradient_of_the_core(make: type, dtype: torch.dtype, tolerance: float) -> None:
    """Property 4: autograd's g_R is Bᵀ g Aᵀ, where g is the full weight's gradient."""
    model = LoraSb(rank=RANK).attach(make().to(dtype), "causal_lm", seed=0)
    set_start(model, {k: Start(*(t.to(dtype) for t in s)) for k, s in starts_for(model).items()})
    for layer in modules(model).values():
        layer.weight.requires_grad_(True)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    for path, layer in tuner_layers(model).items():
        g = layer.get_base_layer().weight.grad
        g = g if make is llama else g.T
        B, A = layer.factor("B", "default"), layer.factor("A", "default")
        g_R = layer.factor("R", "default").grad
        assert_close(g_R, B.T @ g @ A.T, atol=tolerance * g.abs().max().item(), rtol=tolerance)
        assert A.grad is None, path


def test_only_rank_wide_activations_are_kept() -> None:
    """Neither frozen product keeps its input: of the branch, A x alone waits for the backward."""
    model = LoraSb(rank=RANK, init="weights").attach(llama(), "causal_lm", seed=0)
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    weights = {p.data_ptr() for p in layer.parameters()}
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept.append(tuple(tensor.shape))
        return tensor

    x = torch.randn(6, 5, layer.in_features, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    assert kept
    assert all(shape[-1] == RANK for shape in kept)


def test_only_the_core_trains() -> None:
    model = LoraSb(rank=RANK).attach(llama(), "causal_lm", seed=0)
    names = trainable_names(model)
    assert len(names) == 14
    assert all(name.endswith(".lora_sb_R") for name in names)


def test_lora_xs_start() -> None:
    """B = U and A = S Vᵀ of W0, R ~ N(0, 1e-5²): B A is the best rank-r part of W0."""
    adapter = LoraSb(rank=8, init="weights")
    assert not adapter.needs_estimate
    model = adapter.attach(llama().double(), "causal_lm", seed=0)
    state = by_module(adapter_state(model))
    entries = []
    for path, layer in modules(model).items():
        factors = state[path]
        tail = torch.linalg.svdvals(layer.weight)[8:].square().sum()
        error = (layer.weight - factors["lora_sb_B"] @ factors["lora_sb_A"]).square().sum()
        assert_close(error, tail, atol=1e-12, rtol=1e-9)
        entries.append(factors["lora_sb_R"].flatten())
    std = torch.cat(entries).std().item()
    assert 0.9e-5 < std < 1.1e-5


def test_placeholder_cannot_be_mistaken_for_a_start() -> None:
    model = LoraSb(rank=RANK).attach(llama(), "causal_lm", seed=0)
    assert LoraSb(rank=RANK).needs_estimate
    assert all(not value.any() for value in adapter_state(model).values())


def test_large_matrices_are_decomposed_without_the_global_random_state() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(600, 6), torch.randn(6, 700)
    matrix = left @ right + 1e-3 * torch.randn(600, 700)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    U, S, Vh = truncated_svd(matrix, 6)
    again = truncated_svd(matrix, 6)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(again[0], U)
    exact = torch.linalg.svdvals(matrix)
    assert_close(S, exact[:6], rtol=1e-4, atol=0)
    error = (matrix - U * S @ Vh).square().sum()
    assert error < 1.001 * exact[6:].square().sum()
    with pytest.raises(ValueError, match=r"choose 1\.\.600"):
        truncated_svd(matrix, 601)


def test_start_from_core_refuses_a_dead_gradient() -> None:
    Q = torch.linalg.qr(torch.randn(10, 4)).Q
    with pytest.raises(ValueError, match="zero or not finite"):
        start_from_core(Q, torch.zeros(8, 4), 2, 0.1)
    with pytest.raises(ValueError, match="rank 5 from a sketch of width 4"):
        start_from_core(Q, torch.ones(8, 4), 5, 0.1)


def test_perturbed_adapter_is_not_a_no_op() -> None:
    model = LoraSb(rank=RANK).attach(llama(), "causal_lm", seed=0)
    perturb(model)
    state = by_module(adapter_state(model))
    assert all(LoraSb(rank=RANK).delta(factors).any() for factors in state.values())
