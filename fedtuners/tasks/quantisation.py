"""Frozen base models in 8 or 4 bits, by bitsandbytes: LLM.int8() (arXiv 2208.07339) and QLoRA's
NF4 with quantised constants (arXiv 2305.14314).

Weights are quantised while they load, in every linear layer but the output and a classifier's
head, which trains. Adapters stay in fp32 beside them.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.import_utils import is_bitsandbytes_available

from fedtuners.adapters.base import HEADS
from fedtuners.tasks.config import ModelConfig, ModelError

log = logging.getLogger("flwr")

# Consecutive weights that share a constant, and constants that share one (QLoRA, section 3).
BLOCK, CONSTANTS = 64, 256
FOR_INFERENCE = "support_avx512bf16_for_cpu"


def quantiser(config: ModelConfig, device: str | torch.device, classifies: bool) -> dict[str, Any]:
    """What `from_pretrained` takes to quantise a model while it loads; nothing for a plain one.

    Raises:
        ModelError: when bitsandbytes or a device that it works on is missing.
    """
    if config.quantization is None:
        return {}
    place = torch.device(device)
    _check(config.quantization, place)
    # It warns of every input of an 8-bit layer that is not in fp16, at every call.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    settings = BitsAndBytesConfig(
        load_in_8bit=config.quantization == "int8",
        load_in_4bit=config.quantization == "nf4",
        llm_int8_skip_modules=list(HEADS) if classifies else None,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, config.dtype),
    )
    return {"quantization_config": settings, "device_map": {"": place}}


def keep_trainable(model: nn.Module) -> None:
    """Forbids the layout for inference that a CPU with AVX512-BF16 gives 4-bit weights.

    A layer takes it at its first evaluation, rounds its constants to bfloat16 for that, and lets no
    gradient through from then on.
    """
    for layer in model.modules():
        if hasattr(layer, FOR_INFERENCE):
            setattr(layer, FOR_INFERENCE, False)


def saved_bytes(model: PreTrainedModel, quantization: str | None) -> int:
    """Bytes that quantising a plain model's weights spares; it may be on the meta device."""
    if quantization is None:
        return 0
    return sum(
        layer.weight.numel() * layer.weight.element_size() - stored_bytes(layer, quantization)
        for layer in _quantised_layers(model)
    )


def largest_weight(model: PreTrainedModel, quantization: str | None) -> int:
    """Bytes of the largest weight that is quantised, as it is while a backward pass multiplies."""
    if quantization is None:
        return 0
    return max(
        layer.weight.numel() * layer.weight.element_size() for layer in _quantised_layers(model)
    )


def stored_bytes(layer: nn.Linear | Conv1D, quantization: str) -> int:
    """Bytes of one layer's weight once quantised, with its constants.

    8 bits: a byte a number and one fp32 constant a row. 4 bits: half a byte, and a byte for each
    block's constant, with one fp32 constant for every 256 of those.
    """
    numbers = layer.weight.numel()
    if quantization == "int8":
        rows = layer.weight.shape[0 if isinstance(layer, nn.Linear) else 1]
        return numbers + 4 * rows
    blocks = -(-numbers // BLOCK)
    return -(-numbers // 2) + blocks + 4 * -(-blocks // CONSTANTS)


def _quantised_layers(model: PreTrainedModel) -> Iterator[nn.Linear | Conv1D]:
    """The layers whose weights `quantiser` has transformers quantise."""
    classifies = any(hasattr(model, head) for head in HEADS)
    kept: Sequence[str] = HEADS if classifies else get_keys_to_not_convert(model)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D) and should_convert_module(name, list(kept)):
            yield layer


def _check(quantization: str, device: torch.device) -> None:
    if not is_bitsandbytes_available():
        raise ModelError(
            f"model.quantization={quantization} needs bitsandbytes: pip install 'fedtuners[cuda]', "
            "or choose model.quantization=null"
        )
    if device.type not in ("cuda", "cpu"):
        raise ModelError(
            f"model.quantization={quantization} works on device=cuda and, slowly, on device=cpu, "
            f"not on {device}: choose one of them, or model.quantization=null"
        )
    if device.type == "cpu":
        log.info("model.quantization=%s on a CPU is for trying out: it is slow", quantization)
