"""A low-rank residual beside frozen base layers: y += (x Rᵀ) Lᵀ, kept in at least fp32.

FedEx-LoRA (arXiv 2410.09432) adds what averaging misses to the base weights. Added into bfloat16
weights most of it would be rounded away, and into quantised weights it cannot be added at all; as
a side branch it is kept exactly, and costs k (m + n) numbers a module.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from fedtuners.adapters.linear import LinearLayer, as_stored, check_mergeable, in_out_features
from fedtuners.adapters.state import PEFT_PREFIX, base_layer

# How a residual's factors are called where tensors go by name: `<module path>.residual_L`.
LEFT, RIGHT = "residual_L", "residual_R"

LowRank = tuple[Tensor, Tensor]


class Residual(nn.Module):
    """The factors of one layer's residual; not in its state_dict, but moved with it.

    Attributes:
        L: (m, k).
        R: (k, n).
        handle: of the hook that adds the residual to the layer's output.
    """

    L: Tensor
    R: Tensor

    def __init__(self, L: Tensor, R: Tensor, handle: RemovableHandle) -> None:
        super().__init__()
        self.register_buffer("L", L, persistent=False)
        self.register_buffer("R", R, persistent=False)
        self.handle = handle

    def forward(self, x: Tensor) -> Tensor:
        """(x Rᵀ) Lᵀ, outside any autocast."""
        with torch.autocast(x.device.type, enabled=False):
            return linear(linear(x.to(self.R.dtype), self.R), self.L)


def attach_residual(model: nn.Module, residuals: Mapping[str, LowRank]) -> None:
    """Adds a residual to base layers, in place of the one that a layer may have.

    Args:
        model: the base model, with or without adapters on it.
        residuals: (L (m, k), R (k, n)) by module path in the base model, in the orientation of
            nn.Linear for Conv1D too.

    Raises:
        ValueError: when a module is not there or the shapes are not its own, naming it; nothing
            is changed then.
    """
    for path, (L, R) in residuals.items():
        _check(path, base_layer(model, path), L, R)
    for path, (L, R) in residuals.items():
        layer = base_layer(model, path)
        _detach(layer)
        dtype = torch.promote_types(L.dtype, torch.float32)
        device = layer.weight.device
        handle = layer.register_forward_hook(_add_residual)
        layer.residual = Residual(
            L.detach().to(device, dtype), R.detach().to(device, dtype), handle
        )


def clear_residual(model: nn.Module) -> None:
    """Removes all residuals."""
    for layer in _layers(model).values():
        _detach(layer)


def residuals(model: nn.Module) -> dict[str, LowRank]:
    """(L, R) of every layer that has a residual, by module path in the base model."""
    found = {path: _residual(layer) for path, layer in _layers(model).items()}
    return {path: (residual.L, residual.R) for path, residual in found.items() if residual}


def merge_residual(model: nn.Module) -> None:
    """Adds all residuals into the base weights and removes them; rounds to the weights' dtype.

    Raises:
        ValueError: when the base is quantised.
    """
    for path, (L, R) in residuals(model).items():
        layer = base_layer(model, path)
        check_mergeable(layer)
        weight = layer.weight
        weight.data = (weight.data + as_stored(layer, L @ R)).to(weight.dtype)
        _detach(layer)


def _add_residual(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    # A plain function that finds the factors on the layer, so that a deep copy uses its own.
    residual = _residual(layer)
    return output if residual is None else output + residual(args[0]).to(output.dtype)


def _residual(layer: nn.Module) -> Residual | None:
    found = getattr(layer, "residual", None)
    return found if isinstance(found, Residual) else None


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that have a residual, by module path in the base model."""
    return {
        name.removeprefix(PEFT_PREFIX).removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if _residual(module) is not None
    }


def _detach(layer: nn.Module) -> None:
    residual = _residual(layer)
    if residual is not None:
        residual.handle.remove()
        del layer.residual


def _check(path: str, layer: LinearLayer, L: Tensor, R: Tensor) -> None:
    in_features, out_features = in_out_features(layer)
    fits = L.ndim == R.ndim == 2 and L.shape[1] == R.shape[0]
    if not fits or (L.shape[0], R.shape[1]) != (out_features, in_features):
        raise ValueError(
            f"the residual of {path} is {tuple(L.shape)} @ {tuple(R.shape)}, but its weight maps "
            f"{in_features} to {out_features}: L must be ({out_features}, k), R (k, {in_features})"
        )
