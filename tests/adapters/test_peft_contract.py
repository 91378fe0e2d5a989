"""Every adapter keeps PEFT's contract on every model family."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_models import bert, llama, logits, perturb, roberta, task_of, tokens
from torch import nn
from torch.testing import assert_close

from fedtuners.adapters import Abba, Adapter, Lora, LoraSb, adapter_state, by_module, modules
from fedtuners.adapters.state import tuner_layers


def attach(adapter: Adapter, base: nn.Module, seed: int = 0) -> PeftModel:
    return adapter.attach(base, task_of(base), seed).eval()


def test_delta_is_one_matrix_however_it_is_asked(adapter: Adapter, base: nn.Module) -> None:
    """low_rank, delta, the layer's get_delta_weight and the layer's output agree in fp64."""
    model = attach(adapter, base.double())
    perturb(model)
    state = by_module(adapter_state(model))
    for path, layer in tuner_layers(model).items():
        factors = {name: state[path][name] for name in adapter.factors}
        L, R = adapter.low_rank(factors)
        stored = layer.get_delta_weight("default").detach()
        in_features = modules(model)[path].weight.shape[0 if "Conv1D" in str(layer) else 1]
        x = torch.randn(7, in_features, dtype=torch.float64)
        with torch.no_grad():
            branch = layer(x) - layer.get_base_layer()(x)

        assert_close(L @ R, adapter.delta(factors), atol=1e-12, rtol=0)
        oriented = stored.T if "Conv1D" in str(layer) else stored
        assert_close(oriented, L @ R, atol=1e-12, rtol=1e-12)
        assert_close(branch, x @ (L @ R).T, atol=1e-12, rtol=1e-12)


def test_start_is_the_base_model(adapter: Adapter, base: nn.Module) -> None:
    before = logits(base)
    model = attach(adapter, base)
    assert_close(logits(model), before, atol=1e-5, rtol=1e-5)


def test_save_and_load(adapter: Adapter, base: nn.Module, tmp_path: Path) -> None:
    model = attach(adapter, base)
    perturb(model)
    model.save_pretrained(tmp_path)
    fresh = type(base)(base.config)
    fresh.load_state_dict(_base_state(model))

    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()

    assert (tmp_path / "adapter_model.safetensors").exists()
    assert torch.equal(logits(loaded), logits(model))
    saved, again = adapter_state(model), adapter_state(loaded)
    assert all(torch.equal(saved[name], again[name]) for name in saved)
    assert not [name for name, p in loaded.named_parameters() if p.requires_grad]


def _base_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """The base model's own state, from under the adapters."""
    state = {}
    for name, value in model.get_base_model().state_dict().items():
        if any(mark in name for mark in ("lora_", "abba_", "modules_to_save")):
            continue
        state[name.replace(".base_layer", "").replace(".original_module", "")] = value
    return state


def test_merge_unmerge_and_unload(adapter: Adapter, base: nn.Module) -> None:
    model = attach(adapter, base.double())
    perturb(model)
    adapted = logits(model)
    with model.disable_adapter():
        plain = logits(model)

    model.merge_adapter(safe_merge=True)
    assert_close(logits(model), adapted, atol=1e-12, rtol=1e-12)
    model.unmerge_adapter()
    with model.disable_adapter():
        assert_close(logits(model), plain, atol=1e-12, rtol=1e-12)
    merged = model.merge_and_unload()
    assert not tuner_layers(merged)
    assert type(merged) is type(base)
    assert_close(logits(merged), adapted, atol=1e-12, rtol=1e-12)
    assert (adapted - plain).abs().max() > 1e-6


def test_several_adapters(adapter: Adapter) -> None:
    base = llama()
    plain = logits(base)
    model = attach(adapter, base)
    perturb(model)
    first = logits(model)
    model.add_adapter("second", adapter.config("causal_lm"))
    model.set_adapter("second")
    second = logits(model)
    model.set_adapter("default")

    assert_close(second, plain, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(model), first)
    model.delete_adapter("default")
    model.set_adapter("second")
    assert_close(logits(model), plain, atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        assert_close(logits(model), plain, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", [LoraSb(rank=4), LoraSb(rank=4, init="weights")])
def test_switching_never_thaws_frozen_factors(method: LoraSb) -> None:
    model = attach(method, llama())
    model.add_adapter("second", method.config("causal_lm"))
    for name in ("second", "default"):
        model.set_adapter(name)
        with model.disable_adapter():
            pass
        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        assert trained
        assert all(f"lora_sb_R.{name}." in n for n in trained)


def test_bfloat16_base(adapter: Adapter) -> None:
    model = attach(adapter, bert().bfloat16())
    perturb(model, std=0.05)
    state = adapter_state(model)
    assert {value.dtype for value in state.values()} == {torch.float32}
    loss = model(input_ids=tokens(), labels=torch.tensor([0, 1, 2])).loss
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(torch.isfinite(p.grad).all() for p in trained)
    adapted = logits(model)
    merged = model.merge_and_unload()
    assert_close(logits(merged), adapted, atol=0.05, rtol=0.05)


def test_heads_train_and_survive_unloading(adapter: Adapter) -> None:
    model = attach(adapter, roberta())
    state = adapter_state(model)
    assert "classifier.dense.weight" in state
    head = {n for n, p in model.named_parameters() if p.requires_grad and "modules_to_save" in n}
    assert len(head) == 4
    for name, parameter in model.named_parameters():
        if name in head:
            parameter.data += 0.1
    adapted = logits(model)
    assert_close(logits(model.merge_and_unload()), adapted, atol=1e-5, rtol=1e-5)


def test_same_seed_same_adapter_and_global_state_untouched(adapter: Adapter) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    base, other = llama(), llama()
    torch.manual_seed(5)
    first = adapter_state(attach(adapter, base, seed=3))
    assert torch.equal(torch.rand(1), expected)
    torch.manual_seed(99)
    second = adapter_state(attach(adapter, other, seed=3))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_named_targets_and_dropout(adapter: Adapter) -> None:
    method = type(adapter)(**{**vars(adapter), "targets": ["q_proj", "v_proj"], "dropout": 0.5})
    model = attach(method, llama())
    perturb(model)
    assert {path.rpartition(".")[2] for path in modules(model)} == {"q_proj", "v_proj"}
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_one_step_moves_the_weights(adapter: Adapter) -> None:
    """Property 8, for whatever the start leaves trainable."""
    model = attach(adapter, llama())
    if adapter.needs_estimate:
        perturb(model)
    before = adapter_state(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    optimiser.step()
    after = adapter_state(model)
    moved = {
        name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])
    }
    assert adapter.linear_factor in moved


@pytest.mark.parametrize("checkpointing", [{"use_reentrant": False}, {"use_reentrant": True}])
def test_gradient_checkpointing(adapter: Adapter, checkpointing: dict[str, bool]) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = attach(adapter, llama())
        perturb(model)
        model.train()
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(checkpointing)
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(gradients[0]) > 0
    for plain, recomputed in zip(*gradients, strict=True):
        assert_close(recomputed, plain, atol=1e-6, rtol=1e-5)


def test_autocast(adapter: Adapter) -> None:
    """Gradients arrive in fp32, and are those without autocast but for bfloat16's rounding."""
    gradients = []
    for enabled in (False, True):
        model = attach(adapter, llama())
        perturb(model, std=0.1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = model(input_ids=tokens(), labels=tokens()).loss
        loss.backward()
        trained = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(g.dtype == torch.float32 for g in trained)
        gradients.append(torch.cat([g.flatten() for g in trained]))
    exact, rounded = gradients
    assert 0 < (rounded - exact).norm() <= 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Lora(rank=9), r"rank 9 does not fit model\.layers\.0\.self_attn\.k_proj \(8×16\)"),
        (LoraSb(rank=9), r"rank 9 does not fit model\.layers\.0\.self_attn\.k_proj \(8×16\)"),
        (LoraSb(rank=0), "rank 0 of lora_sb must be at least 1"),
        (Abba(rank1=9, rank2=2), r"rank 9 does not fit model\.layers\.0\.self_attn\.k_proj"),
        (Abba(rank1=2, rank2=9), r"rank 9 does not fit model\.layers\.0\.self_attn\.k_proj"),
        (LoraSb(rank=4, targets=["embed_tokens"]), "model.embed_tokens is a Embedding"),
        (LoraSb(rank=4, init="svd"), "choose 'update' or 'weights'"),
    ],
)
def test_errors_name_the_layer_and_the_fix(method: Adapter, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attach(method, llama())


@pytest.mark.parametrize("method", [LoraSb(rank=2), Abba(rank1=2, rank2=2)])
def test_quantised_layers_are_refused(method: Adapter) -> None:
    base = llama()
    layer = base.model.layers[1].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj is a quantised Linear"):
        attach(method, base)


def test_low_memory_loading(tmp_path: Path) -> None:
    """Loading does not decompose weights whose factors the file gives."""
    method = LoraSb(rank=4, init="weights")
    model = attach(method, llama())
    perturb(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(logits(loaded), logits(model))


def test_plain_peft_can_use_the_configs() -> None:
    method = LoraSb(rank=4, init="weights")
    model = get_peft_model(llama(), method.config("causal_lm"))
    assert model.peft_config["default"].peft_type == "LORA_SB"
    trainable, _ = model.get_nb_trainable_parameters()
    assert trainable == 14 * 16
