"""The frozen linear layers that adapters go on: nn.Linear and the Conv1D of GPT-2.

Conv1D is a linear layer whose weight is stored transposed, (in_features, out_features). Everywhere
else a matrix has the orientation of nn.Linear, (m, n) = (out_features, in_features). The weights of
a layer of bitsandbytes, an nn.Linear too, are packed numbers of 8 or 4 bits.
"""

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LinearLayer = nn.Linear | Conv1D

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# The weights of bitsandbytes' layers, by name: it need not be installed.
QUANTISED = ("Params4bit", "Int8Params")


def linear_layer(name: str, layer: nn.Module) -> LinearLayer:
    """The layer itself, once it is known to be linear.

    Raises:
        ValueError: naming the layer, when it is not.
    """
    if isinstance(layer, nn.Linear | Conv1D):
        return layer
    raise ValueError(
        f"{name} is a {type(layer).__name__}, and only nn.Linear and Conv1D can be adapted: "
        "leave it out of the targets"
    )


def in_out_features(layer: LinearLayer) -> tuple[int, int]:
    """(in_features, out_features) of a layer."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    in_features, out_features = layer.weight.shape
    return in_features, out_features


def as_stored(layer: LinearLayer, matrix: Tensor) -> Tensor:
    """A matrix (m, n) as the layer stores its weight; the same for the weight as a matrix."""
    return matrix if isinstance(layer, nn.Linear) else matrix.T


def weight_matrix(layer: LinearLayer) -> Tensor:
    """W0 (m, n), detached: a quantised weight as it multiplies."""
    return as_stored(layer, dequantize_module_weight(layer).detach())


def is_quantised(layer: nn.Module) -> bool:
    """Whether bitsandbytes keeps the layer's weight in 8 or 4 bits."""
    return type(getattr(layer, "weight", None)).__name__ in QUANTISED


def dequantise_into(plain: nn.Module, quantised: nn.Module) -> None:
    """Gives a plain model the weights that the same model, quantised, computes with."""
    for path, layer in quantised.named_modules():
        if is_quantised(layer):
            target = linear_layer(path, plain.get_submodule(path))
            matrix = as_stored(target, weight_matrix(linear_layer(path, layer)))
            target.weight.data.copy_(matrix)


def check_mergeable(layer: LinearLayer) -> None:
    """Raises a ValueError when the layer's weight is quantised, so that nothing can be added."""
    if is_quantised(layer):
        raise ValueError(
            "nothing can be merged into quantised weights: use `fedtuners export`, which writes a "
            "LoRA or merges into dequantised weights, or load the base with model.quantization=null"
        )


def check_known(name: str, layer: LinearLayer) -> None:
    """Raises a ValueError naming the layer unless it is plain or of bitsandbytes."""
    if is_quantised(layer):
        return
    weight = layer.weight
    in_features, out_features = in_out_features(layer)
    stored = as_stored(layer, torch.empty(out_features, in_features, device="meta")).shape
    if type(weight) is not nn.Parameter or weight.dtype not in FLOATS or weight.shape != stored:
        raise ValueError(
            f"{name} is a quantised {type(layer).__name__} ({weight.dtype}): load the base model "
            "in float32 or bfloat16, or in 8 or 4 bits by bitsandbytes (int8, nf4)"
        )


def check_rank(name: str, layer: LinearLayer, rank: int) -> None:
    """Raises a ValueError naming the layer unless 1 <= rank <= min(m, n)."""
    in_features, out_features = in_out_features(layer)
    largest = min(in_features, out_features)
    if not 1 <= rank <= largest:
        raise ValueError(
            f"rank {rank} does not fit {name} ({out_features}×{in_features}): choose "
            f"1..{largest}, or leave the layer out of the targets"
        )
