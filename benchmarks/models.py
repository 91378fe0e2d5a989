"""The models that benchmarks run on: the papers' shapes without weights, and random small ones."""

from collections.abc import Callable

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)


def llama(
    hidden: int, intermediate: int, layers: int, heads: int, groups: int, vocabulary: int
) -> PreTrainedModel:
    """A random Llama of these dimensions; on the meta device without weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config)


def llama_1b(layers: int = 16, vocabulary: int = 128_256) -> PreTrainedModel:
    """Llama-3.2-1B."""
    return llama(2048, 8192, layers, 32, 8, vocabulary)


def llama_3b() -> PreTrainedModel:
    """Llama-3.2-3B."""
    return llama(3072, 8192, 28, 24, 8, 128_256)


def mistral_7b() -> PreTrainedModel:
    """Mistral-7B-v0.1."""
    return MistralForCausalLM(MistralConfig())


def gemma_9b() -> PreTrainedModel:
    """Gemma-2-9B."""
    config = Gemma2Config(
        hidden_size=3584,
        intermediate_size=14336,
        num_hidden_layers=42,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
    )
    return Gemma2ForCausalLM(config)


def bert_base() -> PreTrainedModel:
    """BERT-base with a head of three labels."""
    return BertForSequenceClassification(BertConfig(num_labels=3))  # type: ignore[call-arg]


def shapes_only(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A model without weights: shapes and arithmetic can be counted, nothing computed."""
    with torch.device("meta"):
        return make()
