"""The export: what a process that knows nothing of our tuners loads gives the same logits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import bert, llama, logits, perturb, task_of, tokens
from torch import nn
from torch.testing import assert_close

from fedtuners.adapters import (
    Abba,
    Adapter,
    Lora,
    adapter_state,
    attach_residual,
    by_module,
    export_lora,
)
from fedtuners.adapters.low_rank import norm, truncate

STOCK_PEFT = """
import sys
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

base, exported, ids, answer = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), exported).eval()
assert not [name for name in sys.modules if name.startswith("fedtuners")]
with torch.no_grad():
    save_file({"logits": model(input_ids=load_file(ids)["ids"]).logits}, answer)
"""


def test_export_loads_in_every_family(adapter: Adapter, base: nn.Module, tmp_path: Path) -> None:
    model = adapter.attach(base, task_of(base), seed=0)
    perturb(model)
    expected = logits(model)
    errors = export_lora(adapter, adapter_state(model), tmp_path, task=task_of(base))
    plain = model.unload()
    loaded = PeftModel.from_pretrained(plain, tmp_path).eval()
    assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)
    assert set(errors.values()) == {0.0}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["lora_alpha"] == config["r"]
    assert not config["rank_pattern"]


def test_export_with_residuals_loads_in_a_process_of_its_own(tmp_path: Path) -> None:
    adapter = Abba(rank1=2, rank2=2, alpha=2.0)
    base = llama()
    base.save_pretrained(tmp_path / "base")
    model = adapter.attach(base, "causal_lm", seed=0)
    perturb(model)
    extra = {"model.layers.1.mlp.down_proj": (torch.randn(16, 3), torch.randn(3, 24))}
    attach_residual(model, extra)
    state = adapter_state(model)
    export_lora(adapter, state, tmp_path / "lora", task="causal_lm", residuals=extra)
    save_file({"ids": tokens()}, tmp_path / "ids")

    arguments = [str(tmp_path / name) for name in ("base", "lora", "ids", "answer")]
    subprocess.run([sys.executable, "-c", STOCK_PEFT, *arguments], check=True, cwd=tmp_path)

    answer = load_file(tmp_path / "answer")["logits"]
    assert_close(answer, logits(model), atol=1e-5, rtol=1e-5)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {t.shape[0] for name, t in tensors.items() if "lora_A" in name} == {7}


def test_truncation_is_the_best_one_and_says_what_it_loses(tmp_path: Path) -> None:
    adapter = Abba(rank1=3, rank2=3, alpha=2.0)
    model = adapter.attach(llama().double(), "causal_lm", seed=0)
    perturb(model)
    state = adapter_state(model)
    errors = export_lora(adapter, state, tmp_path, task="causal_lm", max_rank=4)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for path, factors in by_module(state).items():
        delta = adapter.delta(factors)
        sigma = torch.linalg.svdvals(delta)
        prefix = f"base_model.model.{path}"
        kept = tensors[f"{prefix}.lora_B.weight"] @ tensors[f"{prefix}.lora_A.weight"]
        lost = (delta - kept).norm() / delta.norm()
        assert lost.item() == pytest.approx(errors[path], rel=1e-9)
        tail = sigma[4:].square().sum().sqrt() / delta.norm()
        assert errors[path] == pytest.approx(tail.item(), rel=1e-9)


def test_heads_are_exported(adapter: Adapter, tmp_path: Path) -> None:
    model = adapter.attach(bert(), "classification", seed=0)
    export_lora(adapter, adapter_state(model), tmp_path, task="classification")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors["base_model.model.classifier.weight"].shape == (3, 16)


def test_a_residual_without_an_adapter_is_an_error(tmp_path: Path) -> None:
    adapter = Lora(rank=2, targets=["q_proj"])
    state = adapter_state(adapter.attach(llama(), "causal_lm", seed=0))
    extra = {"model.layers.0.mlp.up_proj": (torch.zeros(24, 1), torch.zeros(1, 16))}
    with pytest.raises(ValueError, match=r"up_proj has a residual but no lora tensors"):
        export_lora(adapter, state, tmp_path, task="causal_lm", residuals=extra)
    with pytest.raises(ValueError, match="choose at least 1"):
        export_lora(adapter, state, tmp_path, task="causal_lm", max_rank=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_truncate(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    L = torch.randn(20, 8, generator=generator, dtype=torch.float64).to(dtype)
    R = torch.randn(8, 12, generator=generator, dtype=torch.float64).to(dtype)
    sigma = torch.linalg.svdvals(L @ R)
    L3, R3, error = truncate(L, R, 3)
    assert (L3.shape, R3.shape) == ((20, 3), (3, 12))
    assert error == pytest.approx(sigma[3:].square().sum().sqrt().item(), rel=10 * tolerance)
    assert (L @ R - L3 @ R3).norm().item() == pytest.approx(error, rel=10 * tolerance)
    assert norm(L, R) == pytest.approx((L @ R).norm().item(), rel=10 * tolerance)
    assert truncate(L, R, 8) == (L, R, 0.0)
