"""What a quantised base takes, and what is said where it cannot be had."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from fedtuners.shapes import known_shape
from fedtuners.tasks import ModelConfig, ModelError, quantisation
from fedtuners.tasks.quantisation import largest_weight, quantiser, saved_bytes

NF4 = ModelConfig(dtype="bfloat16", quantization="nf4")


def mistral() -> PreTrainedModel:
    """Mistral-7B's shapes in bfloat16, without values."""
    kind: Any = AutoModelForCausalLM
    with torch.device("meta"):
        return kind.from_config(known_shape("mistral-7b"), dtype=torch.bfloat16)


def test_a_7b_model_takes_what_qlora_counts() -> None:
    """4.127 bits a number (arXiv 2305.14314, section 3), the output and embeddings as they are."""
    model = mistral()
    numbers = sum(p.numel() for n, p in model.named_parameters() if "_proj" in n)

    four, eight = saved_bytes(model, "nf4"), saved_bytes(model, "int8")

    assert numbers == pytest.approx(6.98e9, rel=0.01)
    assert 2 * numbers - four == pytest.approx(numbers * 4.127 / 8, rel=1e-4)
    assert 2 * numbers - eight == pytest.approx(numbers, rel=2e-3)
    assert largest_weight(model, "nf4") == 2 * 4096 * 14336


def test_a_plain_base_saves_nothing_and_asks_for_nothing() -> None:
    plain = ModelConfig()

    assert quantiser(plain, "cpu", classifies=False) == {}
    assert saved_bytes(mistral(), None) == largest_weight(mistral(), None) == 0


def test_a_missing_library_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "is_bitsandbytes_available", lambda: False)

    with pytest.raises(ModelError, match=r"pip install 'fedtuners\[cuda\]'") as raised:
        quantiser(NF4, "cuda", classifies=False)

    assert str(raised.value).count("\n") == 0


def test_a_device_that_cannot_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "is_bitsandbytes_available", lambda: True)

    with pytest.raises(ModelError, match=r"not on mps: choose one of them"):
        quantiser(NF4, "mps", classifies=False)


@pytest.mark.parametrize("name", ["int3", "nf8", "4bit"])
def test_an_unknown_quantisation_is_refused_with_the_choices(name: str) -> None:
    with pytest.raises(ValueError, match="choose from null, int8, nf4"):
        replace(NF4, quantization=name)
