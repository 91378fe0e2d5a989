"""The side branch beside frozen layers: exact, precise over bfloat16, replaceable."""

import copy

import pytest
import torch
from tiny_models import gpt2, llama, logits, perturb, tokens
from torch import Tensor, nn
from torch.testing import assert_close

from fedtuners.adapters import (
    Adapter,
    attach_residual,
    clear_residual,
    merge_residual,
    modules,
    residuals,
)
from fedtuners.adapters.linear import in_out_features


def random_residuals(model: nn.Module, std: float = 0.1) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for path, layer in modules(model).items():
        n, m = in_out_features(layer)
        L = torch.randn(m, 2, generator=generator, dtype=torch.float64) * std
        found[path] = (L, torch.randn(2, n, generator=generator, dtype=torch.float64))
    return found


def add_to_weights(model: nn.Module, found: dict[str, tuple[Tensor, Tensor]]) -> None:
    for path, layer in modules(model).items():
        delta = found[path][0] @ found[path][1]
        layer.weight.data += delta if isinstance(layer, nn.Linear) else delta.T


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_residual_is_the_same_as_a_changed_weight(adapter: Adapter, make: type) -> None:
    """On nn.Linear and Conv1D, under every adapter, attached, replaced, merged and cleared."""
    model = adapter.attach(make().double(), "causal_lm", seed=0)
    perturb(model)
    before = logits(model)
    found = random_residuals(model)
    changed = copy.deepcopy(model)
    add_to_weights(changed, found)
    expected = logits(changed)

    attach_residual(model, {path: (L + 1, R) for path, (L, R) in found.items()})
    attach_residual(model, found)
    assert_close(logits(model), expected, atol=1e-12, rtol=1e-12)
    assert residuals(model).keys() == found.keys()
    assert not [name for name in model.state_dict() if "residual" in name]
    merged = copy.deepcopy(model)
    merge_residual(merged)
    assert not residuals(merged)
    assert_close(logits(merged), expected, atol=1e-12, rtol=1e-12)
    clear_residual(model)
    assert torch.equal(logits(model), before)


def test_a_transposed_residual_is_wrong_or_refused() -> None:
    """Known to be wrong on nn.Linear: the orientation that suits GPT-2's storage."""
    model = llama().double()
    L, R = torch.randn(16, 2, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64)
    path = "model.layers.0.self_attn.q_proj"
    attach_residual(model, {path: (L, R)})
    right = logits(model)
    attach_residual(model, {path: (R.T, L.T)})
    assert (logits(model) - right).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.up_proj.*L must be \(24, k\)"):
        attach_residual(model, {"model.layers.0.mlp.up_proj": (L, R)})
    with pytest.raises(ValueError, match="no module nowhere"):
        attach_residual(model, {"nowhere": (L, R)})


def test_a_small_residual_survives_over_bfloat16() -> None:
    """Added into bfloat16 weights most of a residual of 1e-5 is lost; beside them it is not."""
    layer = nn.Linear(64, 64, bias=False)
    nn.init.normal_(layer.weight, std=0.02)
    model = nn.Sequential(layer).bfloat16()
    L, R = torch.randn(64, 4) * 1e-5, torch.randn(4, 64) / 2
    before = layer.weight.detach().float().clone()

    attach_residual(model, {"0": (L, R)})
    assert torch.equal(residuals(model)["0"][0], L)
    merge_residual(model)
    lost = (layer.weight.detach().float() - before - L @ R).norm() / (L @ R).norm()
    assert lost > 0.5


def test_a_residual_moves_with_its_layer_and_its_copies_are_their_own() -> None:
    model = llama()
    found = {"model.layers.0.mlp.up_proj": (torch.randn(24, 1), torch.randn(1, 16))}
    plain = logits(model)
    attach_residual(model, found)
    with_residual = logits(model)
    other = copy.deepcopy(model)
    clear_residual(model)
    assert torch.equal(logits(other), with_residual)
    assert torch.equal(logits(model), plain)
    clear_residual(other)
    assert torch.equal(logits(other), plain)
    attach_residual(model, found)
    assert next(iter(residuals(model.to("meta")).values()))[0].is_meta


def test_training_goes_through_a_residual(adapter: Adapter) -> None:
    model = adapter.attach(llama(), "causal_lm", seed=0)
    perturb(model)
    attach_residual(model, random_residuals(model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=tokens(), labels=tokens()).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in trained)
