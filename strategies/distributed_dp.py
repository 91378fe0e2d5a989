"""Differential privacy of the clients without a trusted server: noise under the masks.

Every client clips its change of the global tensors to norm S, adds N(0, σ²S²/t) and sends the
result through secure aggregation, where t is the threshold: a sum that can be unmasked holds t
clients' noise at least, σS or more in all (Kairouz et al., arXiv:2102.06387, with continuous
noise). ε assumes that t clients of the sum are honest and that nobody adds back what a peer put in,
and takes the sum of rounded Gaussians for a Gaussian: the rounding is some 10⁻⁹ of S.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from fedtuners.config import Config
from strategies.algebra import State
from strategies.central_dp import check_client_level, check_noise, clipped, gaussian, spent
from strategies.messages import Metrics
from strategies.secure import Secagg
from strategies.updates import Update
from strategies.vectors import flatten, unflatten

if TYPE_CHECKING:
    from strategies.base import AdapterStrategy


@dataclass
class DistributedDp(Secagg):
    """Secure aggregation of clipped changes with noise, every client counting the same.

    Parameters
    ----------
    clip_norm
        S, the largest norm of a client's change.
    noise_multiplier
        σ, the standard deviation of the noise on the sum in units of S.
    delta
        δ of the ε that is reported; below 1 / the number of clients.
    """

    needs: ClassVar[str] = "shows the server only a noisy sum of the uploads"
    tells_loss: ClassVar[bool] = False  # no noise covers it

    max_examples: int = 1
    clip_norm: float = 1.0
    noise_multiplier: float = 1.0
    delta: float = 1e-5
    rounds: int = field(default=0, init=False)  # whose noise the reported ε covers

    def __post_init__(self) -> None:
        super().__post_init__()
        check_noise(self.clip_norm, self.noise_multiplier, self.delta)
        if self.max_examples != 1:
            raise ValueError("max_examples must be 1: every client counts the same")

    def check(self, strategy: "AdapterStrategy", config: Config) -> None:
        """Refuse methods that are not linear, a δ that is too large, and a start without noise."""
        super().check(strategy, config)
        check_client_level(config, strategy, self.delta)

    def contribution(
        self, state: State, received: State | None, examples: int, honest: int
    ) -> tuple[State, int]:
        """The clipped change with this client's share of the noise, as float64, at weight 1."""
        if received is None:
            raise ValueError("only training adds noise: a start has no global tensors to change")
        change = clipped(flatten(state) - flatten(received), self.clip_norm)
        noise = gaussian(len(change), self.noise_multiplier * self.clip_norm / honest**0.5)
        like = {name: tensor.double() for name, tensor in state.items()}
        return unflatten(change + noise, like), 1

    def outcome(self, mean: State, origin: State) -> State:
        """The global tensors and the mean change."""
        return {name: origin[name] + mean[name] for name in mean}

    def combine(self, strategy: "AdapterStrategy", updates: Sequence[Update]) -> State:
        """Unmask the noisy sum, and count the round."""
        state = super().combine(strategy, updates)
        self.rounds = strategy.report.round
        return state

    def measured(self) -> Metrics:
        """ε over the rounds so far."""
        return spent(self.noise_multiplier, self.rounds, self.delta)
