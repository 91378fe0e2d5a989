"""Robust aggregation: rules that some clients with false uploads cannot drag where they like.

Each works on the clients' changes as vectors, all tensors laid end to end, and counts every client
once, since numbers of examples are claims. Coordinate-wise median and trimmed mean: Yin et al.,
arXiv:1803.01498. Krum: Blanchard et al., arXiv:1703.02757. The computations are Flower's.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import select_multikrum
from numpy.typing import NDArray

from strategies.aggregation import Mean, combined
from strategies.algebra import State
from strategies.updates import Update
from strategies.vectors import flatten, unflatten

if TYPE_CHECKING:
    from strategies.base import AdapterStrategy

Vectors = NDArray[np.float64]  # shape (clients, numbers)


@dataclass
class Robust(Mean):
    """A rule over the clients' vectors, in place of the weighted mean."""

    needs: ClassVar[str] = "replaces the mean of the uploads"

    @abstractmethod
    def rule(self, vectors: Vectors) -> NDArray[np.float64]:
        """One vector for the clients'; ValueError when there are too few for it to protect."""

    def combine(self, strategy: "AdapterStrategy", updates: Sequence[Update]) -> State:
        """The global tensors plus the rule's choice of change."""
        # Distances of changes, since those of the tensors themselves would cancel in rounding.
        origin = flatten(strategy.state)
        changes = np.stack([(flatten(update.state) - origin).numpy() for update in updates])
        state = unflatten(origin + torch.from_numpy(self.rule(changes)), strategy.state)
        return combined(strategy, state, updates)

    def reduce(self, states: Sequence[State], examples: Sequence[int]) -> State:
        """The rule's choice among states."""
        vectors = np.stack([flatten(state).numpy() for state in states])
        return unflatten(torch.from_numpy(self.rule(vectors)), states[0])


@dataclass
class Median(Robust):
    """The median of every number: right while fewer than half of the clients are false."""

    def rule(self, vectors: Vectors) -> NDArray[np.float64]:
        """The coordinate-wise median."""
        _at_least(3, len(vectors), "aggregation=median")
        middle: NDArray[np.float64] = np.median(vectors, axis=0)
        return middle


@dataclass
class TrimmedMean(Robust):
    """The mean of every number without its lowest and highest values.

    Parameters
    ----------
    fraction
        Of the clients, left out at each end; with n clients ⌊fraction·n⌋ may be false.
    """

    fraction: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 0.5:
            raise ValueError(f"fraction={self.fraction} must lie between 0 and 0.5")

    def rule(self, vectors: Vectors) -> NDArray[np.float64]:
        """The coordinate-wise trimmed mean."""
        if int(self.fraction * len(vectors)) < 1:
            raise ValueError(
                f"aggregation.fraction={self.fraction} of {len(vectors)} clients leaves none out: "
                "raise it, or ask more clients"
            )
        return trim_mean(vectors, self.fraction)


@dataclass
class Krum(Robust):
    """The mean of the clients' vectors that lie closest to most others.

    Parameters
    ----------
    malicious
        How many clients may be false, f; at least 2f + 3 must answer.
    selected
        How many vectors to average: 1 is Krum, more are Multi-Krum.
    """

    malicious: int = 1
    selected: int = 1

    def __post_init__(self) -> None:
        if self.malicious < 0 or self.selected < 1:
            raise ValueError("malicious must be at least 0 and selected at least 1")

    def rule(self, vectors: Vectors) -> NDArray[np.float64]:
        """The mean of the selected vectors."""
        needed = max(2 * self.malicious + 3, self.malicious + self.selected)
        _at_least(needed, len(vectors), f"aggregation=krum with malicious={self.malicious}")
        contents = [RecordDict({"arrays": ArrayRecord({"v": Array(v)})}) for v in vectors]
        chosen = select_multikrum(contents, self.malicious, self.selected)
        picked = [content.array_records["arrays"]["v"].numpy() for content in chosen]
        mean: NDArray[np.float64] = np.mean(picked, axis=0)
        return mean


def _at_least(needed: int, clients: int, what: str) -> None:
    if clients < needed:
        raise ValueError(
            f"{what} needs at least {needed} good replies and has {clients}: ask more clients "
            "(federation.clients, federation.fraction)"
        )
