"""What must hold before states are averaged: names, shapes, dtypes, finite numbers, weights."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Expected = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""The shape and the dtype that each name of a state must have."""


def signature(state: Mapping[str, Tensor]) -> Expected:
    """Return the shape and the dtype of each tensor, for `problems` to hold others against."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def problems(state: Mapping[str, Tensor], expected: Expected) -> str | None:
    """Return one sentence on the first tensor, by name, that is not as expected; None if all are.

    Looks for missing and unexpected names first, then for wrong shapes and dtypes, then for NaN
    and infinity.
    """
    for name in sorted(expected.keys() - state.keys()):
        return f"tensor {name!r} is missing."
    for name in sorted(state.keys() - expected.keys()):
        return f"tensor {name!r} is unexpected."
    for name, (shape, dtype) in sorted(expected.items()):
        tensor = state[name]
        if tuple(tensor.shape) != tuple(shape):
            return f"tensor {name!r} has shape {tuple(tensor.shape)} instead of {tuple(shape)}."
        if tensor.dtype != dtype:
            return f"tensor {name!r} is {tensor.dtype} instead of {dtype}."
    return _non_finite(state)


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Raise a ValueError that names the first tensor, by name, with NaN or infinity in it."""
    problem = _non_finite(state)
    if problem:
        raise ValueError(problem)


def _non_finite(state: Mapping[str, Tensor]) -> str | None:
    for name, tensor in sorted(state.items()):
        # NaN and infinity survive a sum, which is some ten times faster than looking at each value.
        if math.isfinite(float(tensor.detach().sum())):
            continue
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            return f"tensor {name!r} has {bad} NaN or infinite of {tensor.numel()} values."
    return None


def non_floating(state: Mapping[str, Tensor]) -> str | None:
    """Return one sentence on the first tensor, by name, of integers; None if there is none."""
    for name, tensor in sorted(state.items()):
        if not tensor.is_floating_point():
            return f"tensor {name!r} is {tensor.dtype}, and only floating point can be averaged."
    return None


def check_count(number: int, weights: Sequence[float]) -> None:
    """Raise a ValueError unless there is something to aggregate, and one weight for each."""
    if number == 0:
        raise ValueError("there is nothing to aggregate: no client sent anything.")
    if number != len(weights):
        raise ValueError(f"there are {len(weights)} weights for {number} terms; give one a term.")
