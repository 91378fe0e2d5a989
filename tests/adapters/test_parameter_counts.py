"""Property 7: the papers' parameter counts, on the real shapes, without any weights."""

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from fedtuners.adapters import Abba, Adapter, Lora, LoraSb, trainable_names
from fedtuners.adapters.state import named_parameters

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def mistral_7b() -> nn.Module:
    return MistralForCausalLM(MistralConfig())


def gemma2_9b() -> nn.Module:
    config = Gemma2Config(
        hidden_size=3584,
        intermediate_size=14336,
        num_hidden_layers=42,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
    )
    return Gemma2ForCausalLM(config)


def llama32_3b() -> nn.Module:
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
    )
    return LlamaForCausalLM(config)


def bert_base() -> nn.Module:
    return BertForSequenceClassification(BertConfig(num_labels=3))


def count(make: type, adapter: Adapter, task: str) -> int:
    with torch.device("meta"):
        model: PeftModel = adapter.attach(make(), task, seed=0)
    parameters = named_parameters(model)
    return sum(parameters[name].numel() for name in trainable_names(model))


@pytest.mark.parametrize(
    ("make", "adapter", "expected"),
    [
        (mistral_7b, LoraSb(rank=200), 8_960_000),
        (gemma2_9b, LoraSb(rank=200), 11_760_000),
        (llama32_3b, LoraSb(rank=200), 7_840_000),
        (mistral_7b, Lora(rank=32), 83_886_080),
        (gemma2_9b, Lora(rank=32), 108_036_096),
        (llama32_3b, Lora(rank=32), 48_627_712),
        (mistral_7b, Abba(rank1=16, rank2=16), 83_886_080),
    ],
)
def test_language_models(make: type, adapter: Adapter, expected: int) -> None:
    method = type(adapter)(**{**vars(adapter), "targets": PROJECTIONS})
    assert count(make, method, "causal_lm") == expected


def test_all_linear_is_the_papers_choice_of_targets() -> None:
    assert count(mistral_7b, LoraSb(rank=200), "causal_lm") == 8_960_000


@pytest.mark.parametrize(("rank", "expected"), [(32, 26_883), (48, 57_603), (64, 100_611)])
def test_bert_with_its_head(rank: int, expected: int) -> None:
    adapter = LoraSb(rank=rank, targets=["query", "value"])
    assert count(bert_base, adapter, "classification") == expected
