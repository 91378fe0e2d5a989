"""Tiny models and tokenisers for the task tests, and the way to the real data where they are."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> Any:
    """One token a byte, a beginning and an end of sequence, and a padding token of its own."""
    special = ["<s>", "</s>", "<pad>", "<end>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *letters])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return FastTokenizer(
        tokenizer_object=inner, **names, extra_special_tokens=["<end>"], chat_template=CHAT
    )


def llama(dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    """A random two-layer Llama for `byte_tokenizer`, uneven enough that its greedy text varies."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def bert(labels: int = 3) -> BertForSequenceClassification:
    """A random one-layer BERT in fp64 for `byte_tokenizer`."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        num_labels=labels,
        pad_token_id=2,
    )
    return BertForSequenceClassification(config).double().eval()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    return llama()


@pytest.fixture(scope="session")
def classifier() -> BertForSequenceClassification:
    return bert()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[3] / "shared"
    folder = Path(os.environ.get("FEDTUNERS_SHARED", default))
    if not (folder / "data").is_dir():
        pytest.skip("no real data here: set FEDTUNERS_SHARED to a folder with data/ and models/")
    return folder
