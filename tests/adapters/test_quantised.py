"""Adapters beside weights of 8 or 4 bits: the same branch, the same gradients, the same start."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import gpt2, llama, logits, perturb, tokens
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fedtuners.adapters import (
    Adapter,
    LoraSb,
    adapter_state,
    attach_residual,
    by_module,
    clear_residual,
    load_state,
    merge_residual,
    modules,
)
from fedtuners.adapters.estimate import estimate_updates
from fedtuners.adapters.gradients import weight_gradients
from fedtuners.adapters.linear import dequantise_into, is_quantised
from fedtuners.adapters.state import tuner_layers
from fedtuners.tasks import ModelConfig
from fedtuners.tasks.quantisation import keep_trainable, quantiser

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: fedtuners[cuda]")

Quantise = Callable[[nn.Module], nn.Module]


@pytest.fixture(params=["nf4", "int8"])
def quantise(request: pytest.FixtureRequest, tmp_path: Path) -> Quantise:
    """A model's copy with weights in 4 or 8 bits, on the CPU."""

    def quantised(model: nn.Module) -> nn.Module:
        model.save_pretrained(tmp_path)
        options = quantiser(ModelConfig(quantization=request.param), "cpu", classifies=False)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **options)
        keep_trainable(loaded)
        return loaded.requires_grad_(False).eval()

    return quantised


def pair(
    quantise: Quantise, adapter: Adapter, make: Callable[[], nn.Module] = llama
) -> tuple[nn.Module, nn.Module]:
    """(quantised, dequantised) models with equal adapters of random numbers."""
    base, plain = quantise(make()), make()
    dequantise_into(plain, base)
    both = [adapter.attach(model, "causal_lm", seed=0) for model in (base, plain)]
    perturb(both[0])
    load_state(both[1], adapter_state(both[0]))
    return both[0], both[1]


def gradients(model: nn.Module) -> list[Tensor]:
    """Of everything that trains, in training mode but without dropout."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.zero_grad()
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    model.eval()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_output_is_the_quantised_layers_and_the_branch(
    quantise: Quantise, adapter: Adapter, make: Callable[[], nn.Module]
) -> None:
    model = adapter.attach(quantise(make()), "causal_lm", seed=0)
    perturb(model)
    state = by_module({name: t.double() for name, t in adapter_state(model).items()})
    for path, layer in tuner_layers(model).items():
        x = torch.randn(3, 5, layer.in_features, generator=torch.Generator().manual_seed(3))
        L, R = adapter.low_rank(state[path])
        with torch.no_grad():
            branch = layer(x) - layer.base_layer(x)
        assert is_quantised(layer.base_layer)
        assert_close(branch, (x.double() @ R.T @ L.T).float(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_gradients_are_those_over_the_dequantised_weights(
    quantise: Quantise, adapter: Adapter, make: Callable[[], nn.Module]
) -> None:
    quantised, plain = pair(quantise, adapter, make)
    for found, expected in zip(gradients(quantised), gradients(plain), strict=True):
        assert expected.any()
        assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_gradients_over_the_unquantised_weights_are_others(quantise: Quantise) -> None:
    """Known to be wrong: what the test above would not notice if it compared with the original."""
    quantised, _ = pair(quantise, LoraSb(rank=4))
    original = LoraSb(rank=4).attach(llama(), "causal_lm", seed=0)
    load_state(original, adapter_state(quantised))
    found, others = gradients(quantised), gradients(original)
    assert any((a - b).norm() > 1e-3 * b.norm() for a, b in zip(found, others, strict=True))


def test_a_step_leaves_the_packed_weights_alone(quantise: Quantise, adapter: Adapter) -> None:
    model, _ = pair(quantise, adapter)
    before = {path: layer.weight.data.clone() for path, layer in modules(model).items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients(model)
    torch.optim.AdamW(trained, lr=1e-2).step()
    for path, layer in modules(model).items():
        assert layer.weight.data.dtype in (torch.uint8, torch.int8)
        assert torch.equal(layer.weight.data, before[path])
    assert all(p.dtype == torch.float32 for p in trained)


def test_a_start_from_weights_is_that_of_the_dequantised_ones(
    quantise: Quantise, adapter: Adapter
) -> None:
    base, plain = quantise(llama()), llama()
    dequantise_into(plain, base)
    found = adapter_state(adapter.attach(base, "causal_lm", seed=0))
    expected = adapter_state(adapter.attach(plain, "causal_lm", seed=0))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(input_ids=batch, labels=batch).loss


def test_the_update_estimate_needs_no_gradient_on_the_packed_weights(quantise: Quantise) -> None:
    quantised, plain = (model.train() for model in pair(quantise, LoraSb(rank=4)))
    paths = list(modules(quantised))
    found = weight_gradients(quantised, [tokens()], loss, paths)
    expected = weight_gradients(plain, [tokens()], loss, paths)
    for path, gradient in expected.items():
        assert found[path].shape == gradient.shape
        assert_close(found[path], gradient, atol=1e-6, rtol=1e-4)
    assert estimate_updates(quantised, [tokens()], loss, paths, 4, 1e-3).keys() == set(paths)


def test_a_residual_goes_beside_and_nothing_is_merged(quantise: Quantise) -> None:
    quantised, plain = pair(quantise, LoraSb(rank=4))
    beside = {
        path: (torch.full((layer.out_features, 1), 0.1), torch.ones(1, layer.in_features))
        for path, layer in modules(quantised).items()
    }
    before = logits(quantised)
    for model in (quantised, plain):
        attach_residual(model.train(), beside)
    assert_close(logits(quantised), logits(plain), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="nothing can be merged into quantised weights"):
        merge_residual(quantised)
    clear_residual(quantised)
    with pytest.raises(ValueError, match="fedtuners export"):
        quantised.merge_and_unload()
    assert torch.equal(logits(quantised.eval()), before)


def wide() -> LlamaForCausalLM:
    """Wide enough for the layout that a CPU with AVX512-BF16 would give the weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return LlamaForCausalLM(config).eval()


def test_an_evaluation_in_between_changes_no_gradient(quantise: Quantise) -> None:
    model, _ = pair(quantise, LoraSb(rank=4), wide)
    before = gradients(model)
    answered = logits(model)
    for found, expected in zip(gradients(model), before, strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(logits(model), answered)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_checkpointing_and_autocast(
    quantise: Quantise, adapter: Adapter, checkpointed: bool
) -> None:
    """Recomputed gradients are equal; those in bfloat16 are within its precision."""
    model, _ = pair(quantise, adapter)
    exact = gradients(model)
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for found, expected in zip(gradients(model), exact, strict=True):
            assert_close(found, expected, atol=1e-6, rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = gradients(model)
    assert all(gradient.dtype == torch.float32 for gradient in rounded)
    found, expected = (torch.cat([g.flatten() for g in each]) for each in (rounded, exact))
    assert (found - expected).norm() <= 0.15 * expected.norm()
