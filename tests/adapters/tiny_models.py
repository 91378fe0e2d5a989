"""Tiny random models of the families that the adapters must work on."""

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

VOCABULARY = 32


def llama() -> LlamaForCausalLM:
    """Two layers with grouped queries and non-square projections."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    return LlamaForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    """Conv1D layers, some of them non-square."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    return GPT2LMHeadModel(config).eval()


def bert() -> BertForSequenceClassification:
    """A classifier whose head is one linear layer."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=3,
    )
    return BertForSequenceClassification(config).eval()


def roberta() -> RobertaForSequenceClassification:
    """A classifier whose head is a module of two layers without a weight of its own."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=3,
        max_position_embeddings=32,
    )
    return RobertaForSequenceClassification(config).eval()


def task_of(model: nn.Module) -> str:
    """The task of a model above."""
    return "classification" if "Classification" in type(model).__name__ else "causal_lm"


def tokens(rows: int = 3, length: int = 5) -> Tensor:
    """Random token ids, none of them padding."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def perturb(model: nn.Module, std: float = 0.3) -> None:
    """Puts random numbers into every adapter factor, so that ΔW is not zero."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if any(prefix in name for prefix in ("lora_", "abba_")):
            noise = torch.randn(parameter.shape, generator=generator) * std
            parameter.data.copy_(noise)


def logits(model: nn.Module, ids: Tensor | None = None) -> Tensor:
    """The model's logits without gradients."""
    with torch.no_grad():
        return model(input_ids=tokens() if ids is None else ids).logits
