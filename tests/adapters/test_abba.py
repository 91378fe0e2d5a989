"""ABBA: the Khatri–Rao identity, its rank, its start, and the look-alike that is not ABBA."""

import math

import pytest
import torch
from tiny_models import llama, tokens
from torch import Tensor
from torch.testing import assert_close

from fedtuners.adapters import Abba, adapter_state, by_module, modules
from fedtuners.adapters.abba.khatri_rao import abba_scale, khatri_rao
from fedtuners.adapters.state import tuner_layers


def factors(m: int = 13, n: int = 9, r1: int = 2, r2: int = 3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((r1, n), (m, r1), (r2, n), (m, r2))
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)


def hadamard(A1: Tensor, B1: Tensor, A2: Tensor, B2: Tensor) -> Tensor:
    """The definition: (B1 A1) ⊙ (B2 A2)."""
    return (B1 @ A1) * (B2 @ A2)


def hadamard_of_outputs(x: Tensor, A1: Tensor, B1: Tensor, A2: Tensor, B2: Tensor) -> Tensor:
    """Known to be wrong: multiplies what the two pairs make of x, not the pairs."""
    return (x @ A1.T @ B1.T) * (x @ A2.T @ B2.T)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_khatri_rao_identity(dtype: torch.dtype, tolerance: float) -> None:
    A1, B1, A2, B2 = (t.to(dtype) for t in factors())
    L, R = khatri_rao(A1, B1, A2, B2)
    assert L.shape == (13, 6)
    assert R.shape == (6, 9)
    assert_close(L @ R, hadamard(A1, B1, A2, B2), atol=tolerance, rtol=tolerance)
    for i in range(13):
        assert_close(L[i], torch.kron(B1[i], B2[i]), atol=tolerance, rtol=0)
    for j in range(9):
        assert_close(R[:, j], torch.kron(A1[:, j], A2[:, j]), atol=tolerance, rtol=0)


def test_hadamard_of_outputs_is_not_abba() -> None:
    x = torch.randn(5, 9, dtype=torch.float64)
    right = x @ hadamard(*factors()).T
    wrong = hadamard_of_outputs(x, *factors())
    assert (right - wrong).norm() > 0.5 * right.norm()


def test_rank_goes_up_to_the_product_and_no_further() -> None:
    rank = torch.linalg.matrix_rank(hadamard(*factors(30, 20, 3, 4)))
    assert rank == 12


def test_scale() -> None:
    assert abba_scale(16, 4, 9) == pytest.approx(256 / 6)
    adapter = Abba(rank1=2, rank2=3, alpha=4.0)
    names = dict(zip(adapter.factors, factors(), strict=True))
    expected = 16 / math.sqrt(6) * hadamard(*factors())
    assert_close(adapter.delta(names), expected, atol=1e-12, rtol=1e-12)


def test_only_the_zero_factor_has_a_gradient_at_the_start() -> None:
    """Property 5: ΔW = 0, B1 A1 = SVD_r1(W0), and all gradients but B2's vanish."""
    model = Abba(rank1=3, rank2=2).attach(llama().double(), "causal_lm", seed=0)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    state = by_module(adapter_state(model))
    for path, layer in modules(model).items():
        kept = state[path]["abba_B1"] @ state[path]["abba_A1"]
        tail = torch.linalg.svdvals(layer.weight)[3:].square().sum()
        assert_close((layer.weight - kept).square().sum(), tail, atol=1e-12, rtol=1e-9)
        assert not state[path]["abba_B2"].any()
    for layer in tuner_layers(model).values():
        gradients = {n: p.grad for n, p in layer.abba_factors["default"].named_parameters()}
        assert gradients.pop("abba_B2").abs().max() > 0
        assert all(not gradient.any() for gradient in gradients.values())


def test_gradients_match_the_dense_form() -> None:
    adapter = Abba(rank1=2, rank2=3, alpha=2.0)
    model = adapter.attach(llama().double(), "causal_lm", seed=0)
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    module = layer.abba_factors["default"]
    values = [t.requires_grad_() for t in factors(24, 16)]
    for name, value in zip(adapter.factors, values, strict=True):
        getattr(module, name).data.copy_(value)
    x = torch.randn(4, 16, dtype=torch.float64)
    (module(x) ** 2).sum().backward()
    dense = abba_scale(2.0, 2, 3) * hadamard(*values)
    ((x @ dense.T) ** 2).sum().backward()
    for name, value in zip(adapter.factors, values, strict=True):
        assert_close(getattr(module, name).grad, value.grad, atol=1e-10, rtol=1e-10)
