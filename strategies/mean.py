"""Weighted means of states (FedAvg, https://arxiv.org/abs/1602.05629)."""

import math
from collections.abc import Sequence

import torch

from strategies.algebra import State
from strategies.checks import Expected, check_count, non_floating, problems, signature


def num_example_weights(counts: Sequence[int]) -> list[float]:
    """Return the FedAvg weights p_i = n_i / Σ n_j, which sum to one.

    Raises
    ------
    ValueError
        If a count is negative or not finite, or if no client has an example.
    """
    total = math.fsum(counts)
    if not math.isfinite(total) or any(count < 0 for count in counts):
        raise ValueError(f"numbers of examples must be finite and at least 0, but are {counts}.")
    if total == 0:
        raise ValueError("no client has an example, so there is nothing to weigh the clients by.")
    return [count / total for count in counts]


class StreamingMean:
    """The weighted mean Σ w_i x_i / Σ w_i of one round's states, taken in one at a time.

    Memory does not grow with the number of clients: one float64 per number of the state. Make a
    new one for each round, so that no earlier upload can enter a later mean.

    Sums are kept in float64 and cast to each tensor's own dtype at the end. Hence the mean of one
    state is that state bit for bit (float64 tensors: to a rounding error), the mean of two does
    not depend on their order, and that of more depends on it by some 1e-16 of the largest term:
    the last bit of a float32 or bfloat16 result differs about never, but may. Add the clients
    in a fixed order where a run must repeat bit for bit.
    """

    def __init__(self) -> None:
        self._sums: State = {}
        self._weights: list[float] = []
        self._expected: Expected = {}

    def add(self, state: State, weight: float) -> None:
        """Take in one state; a state that is refused leaves the mean as it was.

        Raises
        ------
        ValueError
            If the weight is negative or not finite, or if the state holds integers, NaN or
            infinity, or differs from the first one in names, shapes or dtypes.
        """
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"a weight must be finite and at least 0, but is {weight}.")
        expected = self._expected if self._weights else signature(state)
        problem = problems(state, expected) or non_floating(state)
        if problem:
            raise ValueError(problem)
        self._expected = expected
        for name, tensor in state.items():
            term = torch.mul(tensor.detach().double(), weight)
            self._sums[name] = self._sums[name].add_(term) if self._weights else term
        self._weights.append(weight)

    def result(self) -> State:
        """Return the mean of what was added, each tensor in its own dtype.

        Raises
        ------
        ValueError
            If nothing was added, or only states of weight 0.
        """
        total = math.fsum(self._weights)
        if total == 0:
            raise ValueError("there is no mean of no states, nor of states that all have weight 0.")
        return {
            name: (values / total).to(self._expected[name][1])
            for name, values in self._sums.items()
        }


def weighted_mean(states: Sequence[State], weights: Sequence[float]) -> State:
    """Return Σ w_i x_i / Σ w_i, tensor by tensor; see `StreamingMean` for what is exact.

    Raises
    ------
    ValueError
        If there is no state, not one weight a state, or a state that `StreamingMean` refuses.
    """
    check_count(len(states), weights)
    mean = StreamingMean()
    for state, weight in zip(states, weights, strict=True):
        mean.add(state, weight)
    return mean.result()
