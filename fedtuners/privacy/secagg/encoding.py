"""Real numbers as integers modulo 2³² or 2⁶⁴, so that masks are uniform and cancel exactly.

A client's vector is [1, clipped?, w, round(w·s·x)]: its presence, whether a value of it was
clipped, its weight (its number of examples), and its values x times weight and scale. All of it is
masked, so the sum gives the weighted mean and the total weight and no client's own. With k clients,
clip C and weights of at most W the scale s is the largest power of two for which no sum can wrap.

Error of the mean of values within ±C: at most k / (2·s·Σw), plus 2⁻⁵²·max|x| of float64.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedtuners.privacy.secagg.primitives import Ring, SecAggError

HEADER = 3  # presence, clipped, weight


@dataclass(frozen=True)
class Total:
    """What the sum of the clients' vectors says."""

    clients: int
    clipped: int  # how many of them had a value beyond the clip
    weight: int  # Σ w
    mean: NDArray[np.float64]  # Σ w x / Σ w


@dataclass(frozen=True)
class FixedPoint:
    """The encoding that all clients of one sum share.

    Parameters
    ----------
    clients
        The most vectors that are summed, k.
    clip
        Values beyond ±clip are set to it, C.
    max_weight
        The largest weight, W.
    bits
        Of a ring element: 64, or 32 for half the bytes.
    """

    clients: int
    clip: float
    max_weight: int
    bits: int

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise SecAggError(f"bits={self.bits} is not one of 32, 64.")
        if self.clients < 1 or self.max_weight < 1 or not 0 < self.clip < math.inf:
            raise SecAggError("clip and max_examples must be above 0.")
        if self.clients * self.max_weight >= 2 ** (self.bits - 2) or self._exponent() < 0:
            raise SecAggError(
                f"{self.clients} clients with values up to {self.clip} and {self.max_weight} "
                f"examples do not fit {self.bits} bits: lower clip or max_examples, or take bits=64"
            )

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """NumPy's type of the ring's elements."""
        return np.dtype(np.uint64 if self.bits == 64 else np.uint32)

    @property
    def scale(self) -> float:
        """s: steps per unit, a power of two."""
        return 2.0 ** self._exponent()

    def length(self, values: int) -> int:
        """How many ring elements carry so many values."""
        return HEADER + values

    def error_bound(self, clients: int, weight: int) -> float:
        """The largest error of a mean over so many clients with this total weight."""
        return clients / (2 * self.scale * weight) + 2.0**-52 * self.clip

    def encode(self, values: NDArray[np.float64], weight: int) -> Ring:
        """Return the ring vector of one client, HEADER elements longer than its values.

        Raises
        ------
        SecAggError
            If a value is NaN or infinite, or the weight is not within 1 … max_weight.
        """
        if not np.isfinite(values).all():
            raise SecAggError("the upload holds NaN or infinite values.")
        if not 1 <= weight <= self.max_weight:
            raise SecAggError(
                f"this client's number of examples is not within 1 … {self.max_weight}: raise "
                "aggregation.max_examples"
            )
        within = np.clip(values, -self.clip, self.clip)
        header = [1, int((within != values).any()), weight]
        steps = np.rint(within * (weight * self.scale)).astype(np.int64)
        return np.concatenate([np.array(header, np.int64), steps]).astype(self.dtype)

    def decode(self, total: Ring) -> Total:
        """Return what the unmasked sum of vectors says."""
        signed = total.view(np.int64 if self.bits == 64 else np.int32)
        clients, clipped, weight = (int(number) for number in signed[:HEADER])
        if not 1 <= clients <= self.clients or not 0 <= clipped <= clients or weight < clients:
            raise SecAggError("the masks did not cancel: a client sent a wrong vector or share.")
        sums = signed[HEADER:].astype(np.float64)
        return Total(clients, clipped, weight, sums / (self.scale * weight))

    def _exponent(self) -> int:
        """Half of the ring's positive range holds the values, the other half their rounding."""
        largest = self.clip * self.max_weight * self.clients
        return math.floor(self.bits - 2 - math.log2(largest))
