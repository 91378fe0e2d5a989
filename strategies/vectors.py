"""A named state as one float64 vector and back: for norms, distances, noise and masks."""

import torch
from torch import Tensor

from strategies.algebra import State


def flatten(state: State) -> Tensor:
    """All tensors end to end in the order of their names, float64, shape (numbers,)."""
    return torch.cat([state[name].detach().double().reshape(-1) for name in sorted(state)])


def unflatten(vector: Tensor, like: State) -> State:
    """The inverse: tensors with the names, shapes and dtypes of `like`."""
    names = sorted(like)
    parts = vector.split([like[name].numel() for name in names])
    return {
        name: part.view(like[name].shape).to(like[name].dtype)
        for name, part in zip(names, parts, strict=True)
    }
