"""Load a frozen base model and its tokeniser, by name, as both tasks need them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from fedtuners.tasks.config import ModelConfig, ModelError
from fedtuners.tasks.quantisation import keep_trainable, quantiser


def model_path(name: str) -> str:
    """What transformers loads for a configured name: a folder or a hub name. Raises ModelError."""
    if name == "demo":
        from fedtuners.demo import MODEL_DIR

        return str(MODEL_DIR)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"model.name={name} is not a folder with a model in it")
    return name


def load_causal_lm(
    config: ModelConfig, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, Any]:
    """A causal language model and its tokeniser: evaluation mode, nothing trainable."""
    tokenizer = load_tokenizer(config)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokeniser of {config.name} has no end-of-sequence token")
    model = _load(AutoModelForCausalLM, config, device)
    return _frozen(model, tokenizer, device), tokenizer


def load_classifier(
    config: ModelConfig,
    labels: Sequence[str],
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> tuple[PreTrainedModel, Any]:
    """A sequence classifier over `labels` and its tokeniser; a new head is drawn from `seed`."""
    if len(labels) < 2:
        raise ModelError(f"a classifier needs at least two labels, and got {len(labels)}")
    tokenizer = load_tokenizer(config)
    names = dict(enumerate(labels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _load(
            AutoModelForSequenceClassification,
            config,
            device,
            num_labels=len(labels),
            id2label=names,
            label2id={name: index for index, name in names.items()},
        )
    return _frozen(model, tokenizer, device), tokenizer


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokeniser, with a padding token; one that lacks it pads with its end-of-sequence."""
    tokenizer: Any = _from_pretrained(AutoTokenizer, config)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokeniser of {config.name} has no token to pad with")
    tokenizer.padding_side = "right"
    return tokenizer


def check_length(model: nn.Module, tokens: int) -> None:
    """Raise ModelError if sequences of `tokens` tokens are longer than the model's context."""
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(context, int) and tokens > context:
        raise ModelError(
            f"{tokens} tokens a sequence are more than the model's context of {context}; "
            "lower data.max_length or data.max_new_tokens"
        )


def _load(
    kind: Any, config: ModelConfig, device: str | torch.device, **options: Any
) -> PreTrainedModel:
    options |= quantiser(config, device, kind is AutoModelForSequenceClassification)
    model = _from_pretrained(kind, config, dtype=getattr(torch, config.dtype), **options)
    keep_trainable(model)
    return model


def _from_pretrained(kind: Any, config: ModelConfig, **options: Any) -> Any:
    path = model_path(config.name)
    try:
        with _quietly():
            return kind.from_pretrained(path, revision=config.revision, **options)
    except (OSError, ValueError, KeyError) as error:
        wanted = kind.__name__.removeprefix("AutoModelFor").removeprefix("Auto")
        raise ModelError(
            f"model.name={config.name} could not be loaded as {wanted}: it must be 'demo', a "
            "folder in Hugging Face format, or a hub name that can be reached from here"
        ) from error
    except RuntimeError as error:  # tensors of other shapes than the task wants
        raise ModelError(
            f"model.name={config.name} has a head for other labels than the data has: use a base "
            "model without a head, or set data.labels to the head's"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without progress bars, and without the report of the new head that is expected here."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _frozen(model: PreTrainedModel, tokenizer: Any, device: str | torch.device) -> PreTrainedModel:
    model.config.pad_token_id = tokenizer.pad_token_id
    model.requires_grad_(False)
    return model.to(device).eval()  # type: ignore[arg-type]
