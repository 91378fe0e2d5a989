"""The frozen linear layers that adapters go on: nn.Linear and the Conv1D of GPT-2.

Conv1D is a linear layer whose weight is stored transposed, (in_features, out_features). Everywhere
else a matrix has the orientation of nn.Linear, (m, n) = (out_features, in_features).
"""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LinearLayer = nn.Linear | Conv1D

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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


def check_plain(name: str, layer: LinearLayer) -> None:
    """Raises a ValueError naming the layer when its weight is quantised."""
    weight = layer.weight
    in_features, out_features = in_out_features(layer)
    stored = as_stored(layer, torch.empty(out_features, in_features, device="meta")).shape
    if type(weight) is not nn.Parameter or weight.dtype not in FLOATS or weight.shape != stored:
        raise ValueError(
            f"{name} is a quantised {type(layer).__name__} ({weight.dtype}): load the base model "
            "in float32 or bfloat16, or use LoRA, which PEFT supports on quantised layers"
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
