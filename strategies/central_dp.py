"""Differential privacy of the clients, by noise that a trusted server adds (arXiv:1710.06963).

The unit is a client with all its rows. Its change of the global tensors is clipped to norm S over
all tensors together, every client counts the same, and N(0, σ²S²) is added to the sum of the n
changes before it is divided by n: leaving a client out moves the sum by at most S. ε composes over
all rounds as if every client took part in each (no amplification by sampling is claimed: clients
are drawn without replacement, by a seed that the server knows).
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedtuners.config import Config, ConfigError
from fedtuners.privacy.accounting import Event, epsilon
from fedtuners.privacy.secagg.primitives import KEY_BYTES, mask
from strategies.aggregation import Mean, combined
from strategies.algebra import State
from strategies.messages import Metrics
from strategies.updates import Update
from strategies.vectors import flatten, unflatten

if TYPE_CHECKING:
    from strategies.base import AdapterStrategy

UNIT = "a client with all its rows"
SAMPLING = "no amplification: as if every client took part in every round"


@dataclass
class CentralDp(Mean):
    """Clip each client's change, average with equal weights, add noise.

    Parameters
    ----------
    clip_norm
        S, the largest norm of a client's change.
    noise_multiplier
        σ, the standard deviation of the noise on the sum in units of S.
    delta
        δ of the ε that is reported; below 1 / the number of clients.
    """

    needs: ClassVar[str] = "adds noise to the mean of the uploads"

    clip_norm: float = 1.0
    noise_multiplier: float = 1.0
    delta: float = 1e-5
    rounds: int = field(default=0, init=False)  # whose noise the reported ε covers

    def __post_init__(self) -> None:
        check_noise(self.clip_norm, self.noise_multiplier, self.delta)

    def check(self, strategy: "AdapterStrategy", config: Config) -> None:
        """Refuse methods that are not linear, a δ that is too large, and a start without noise."""
        super().check(strategy, config)
        check_client_level(config, strategy, self.delta)

    def combine(self, strategy: "AdapterStrategy", updates: Sequence[Update]) -> State:
        """The global tensors plus the noisy mean of the clipped changes."""
        origin = flatten(strategy.state)
        total = torch.zeros_like(origin)
        for update in updates:
            total += clipped(flatten(update.state) - origin, self.clip_norm)
        total += gaussian(len(total), self.noise_multiplier * self.clip_norm)
        self.rounds = strategy.report.round
        return combined(strategy, unflatten(origin + total / len(updates), strategy.state), updates)

    def measured(self) -> Metrics:
        """ε over the rounds so far."""
        return spent(self.noise_multiplier, self.rounds, self.delta)


def clipped(change: Tensor, norm: float) -> Tensor:
    """The change scaled down to a norm of at most `norm`."""
    return change * min(1.0, norm / max(float(change.norm()), 1e-300))


def gaussian(count: int, deviation: float) -> Tensor:
    """Noise from a cryptographic generator that the run's seed does not touch: float64 (count,).

    Box–Muller over uniform numbers of 53 bits. Rounding of floating point is not accounted for.
    """
    bits = mask(secrets.token_bytes(KEY_BYTES), 2 * count, np.dtype(np.uint64))
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(uniform[:count]))
    return torch.from_numpy(radius * np.cos(2.0 * np.pi * uniform[count:])) * deviation


def spent(noise_multiplier: float, rounds: int, delta: float) -> Metrics:
    """ε (RDP accountant) of so many rounds, with δ, for the round's line."""
    if rounds < 1:
        return {}
    value = epsilon([Event(noise_multiplier, 1.0, rounds)], delta, "rdp")
    return {"client_epsilon": value, "client_delta": delta}


def check_noise(clip_norm: float, noise_multiplier: float, delta: float) -> None:
    """Raise ValueError for settings that no guarantee follows from."""
    if clip_norm <= 0 or noise_multiplier <= 0:
        raise ValueError("clip_norm and noise_multiplier must be above 0")
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta} must lie between 0 and 1")


def check_client_level(config: Config, strategy: "AdapterStrategy", delta: float) -> None:
    """Raise ConfigError when the run's ε for clients would be false or say nothing."""
    if delta >= 1 / config.federation.clients:
        raise ConfigError(
            f"aggregation.delta={delta} must be below 1/federation.clients "
            f"= 1/{config.federation.clients}, or it allows a client to be given away whole"
        )
    if strategy.adapter.needs_estimate and config.start.source == "clients":
        raise ConfigError(
            "start.source=clients sends sketches without noise, which the clients' ε would not "
            "cover: choose start.source=public or start.source=server"
        )
