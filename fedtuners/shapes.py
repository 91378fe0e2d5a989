"""The shapes of well-known models, as their papers and reports give them, for plans without files.

Numbers alone: no weights, no tokeniser, and nothing that a licence covers.
"""

from collections.abc import Callable

from transformers import (
    BertConfig,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    RobertaConfig,
)


def _llama(layers: int, hidden: int, inner: int, heads: int, vocabulary: int) -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=8192,
        tie_word_embeddings=hidden < 4096,
    )


def _mistral_7b() -> PretrainedConfig:
    return MistralConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )


def _gemma_2_9b() -> PretrainedConfig:
    return Gemma2Config(
        vocab_size=256000,
        hidden_size=3584,
        intermediate_size=14336,
        num_hidden_layers=42,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
    )


def _roberta_large() -> PretrainedConfig:
    return RobertaConfig(
        vocab_size=50265,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        max_position_embeddings=514,
        type_vocab_size=1,
    )


SHAPES: dict[str, Callable[[], PretrainedConfig]] = {
    "bert-base": lambda: BertConfig(vocab_size=28996),
    "gemma-2-9b": _gemma_2_9b,
    "llama-3-70b": lambda: _llama(80, 8192, 28672, 64, 128256),
    "llama-3-8b": lambda: _llama(32, 4096, 14336, 32, 128256),
    "llama-3.2-3b": lambda: _llama(28, 3072, 8192, 24, 128256),
    "mistral-7b": _mistral_7b,
    "roberta-large": _roberta_large,
}


def known_shape(name: str) -> PretrainedConfig:
    """The configuration of a known shape. Raises ValueError with the known ones."""
    if name not in SHAPES:
        raise ValueError(f"--shapes {name}: choose from {', '.join(SHAPES)}, or set model=FOLDER")
    return SHAPES[name]()
