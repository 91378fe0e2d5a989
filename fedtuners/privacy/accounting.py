"""How much privacy a sequence of noisy sums costs: ε from σ, and σ from ε.

The mechanism is always the Poisson-subsampled Gaussian of DP-SGD (Abadi et al., arXiv:1607.00133):
every unit joins with probability q, each joins with a vector of norm at most C, and N(0, σ²C²) is
added. Neighbouring data sets differ by the presence of one unit. Three accountants compose it:

    prv  Gopi et al., arXiv:2106.02848; Opacus', its upper bound; the default
    rdp  Mironov et al., arXiv:1908.10530; Opacus'; looser, and the quickest
    pld  privacy loss distributions (fedtuners.privacy.loss_distribution); ours, independent of both
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from fedtuners.privacy import loss_distribution

LARGEST_SIGMA = 2.0**20
WHOLE_ORDERS = [*range(2, 64), 128, 256]  # enough for a bound, and far quicker than fractional


class PrivacyError(ValueError):
    """A private training that cannot be had; its one sentence names the fix."""


@dataclass(frozen=True, order=True)
class Event:
    """`steps` Poisson-subsampled Gaussian mechanisms: σ in units of the clip, q, and how many."""

    noise_multiplier: float
    sample_rate: float
    steps: int


def epsilon(events: Iterable[Event], delta: float, accountant: str = "prv") -> float:
    """The ε of all events together at a δ; infinite when any of them has no noise.

    Raises
    ------
    PrivacyError
        When the accountant is unknown, or a sampling rate or δ is outside (0, 1].
    """
    if accountant not in ACCOUNTANTS:
        known = ", ".join(ACCOUNTANTS)
        raise PrivacyError(f"privacy.accountant={accountant} is not known; choose from {known}")
    if not 0 < delta < 1:
        raise PrivacyError(f"privacy.delta={delta} must lie strictly between 0 and 1")
    return _epsilon(merged(events), delta, accountant)


@lru_cache(maxsize=4096)
def _epsilon(events: tuple[Event, ...], delta: float, accountant: str) -> float:
    if any(not 0 < event.sample_rate <= 1 for event in events):
        raise PrivacyError("a sampling rate is outside (0, 1]: train.batch_size is above the rows")
    if any(event.noise_multiplier <= 0 for event in events):
        return math.inf
    return ACCOUNTANTS[accountant](events, delta) if events else 0.0


def merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """The same events with equal mechanisms counted together, in a fixed order."""
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        key = (event.noise_multiplier, event.sample_rate)
        steps[key] = steps.get(key, 0) + event.steps
    return tuple(sorted(Event(*key, count) for key, count in steps.items() if count))


def calibrate(
    target: float, delta: float, planned: Sequence[Event], accountant: str = "prv"
) -> float:
    """The smallest σ, within about 0.1 %, that keeps all planned events within the target ε.

    Parameters
    ----------
    target : float
        ε.
    delta : float
    planned : sequence of Event
        What will be done; their noise multipliers are relative to the σ that is sought (1: it).

    Raises
    ------
    PrivacyError
        When no σ is large enough.
    """

    def spent(sigma: float, method: str) -> float:
        scaled = [replace(e, noise_multiplier=e.noise_multiplier * sigma) for e in planned]
        return epsilon(scaled, delta, method)

    if target <= 0:
        raise PrivacyError(f"privacy.epsilon={target} must be above 0")
    guide = "pld" if accountant == "prv" else accountant  # as tight, and quicker at small σ
    low, high = 0.0, 1.0
    while spent(high, guide) > target:
        low, high = high, 2 * high
        if high > LARGEST_SIGMA:
            raise PrivacyError(
                f"no noise keeps privacy.epsilon={target}: raise it or privacy.delta"
            )
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle, guide) <= target else (middle, high)
    while spent(high, accountant) > target:
        high *= 1.001
    return high


def choose_delta(delta: float | None, units: int) -> float:
    """The δ of `units` protected units: the one set, or N^-1.1 (arXiv:2303.00654, section 5.3).

    Raises
    ------
    PrivacyError
        Unless it is below 1/N: at 1/N a mechanism may publish somebody's row as it is.
    """
    chosen = units**-1.1 if delta is None else delta
    if units < 2 or not 0 < chosen < 1 / units:
        raise PrivacyError(
            f"privacy.delta={chosen:.3g} must be below 1/{units}, one over the number of protected "
            "units: lower it, or give this client more rows"
        )
    return chosen


def _prv(events: tuple[Event, ...], delta: float) -> float:
    return _opacus("prv", events, delta)


def _rdp(events: tuple[Event, ...], delta: float) -> float:
    return _opacus("rdp", events, delta)


def _opacus(name: str, events: tuple[Event, ...], delta: float, **settings: Any) -> float:
    from opacus.accountants import create_accountant  # slow to import

    accountant = create_accountant(name)
    accountant.history = [(e.noise_multiplier, e.sample_rate, e.steps) for e in events]
    with warnings.catch_warnings():
        # It warns of log(1 - q) at q = 1, and of an order that is the last it tries: still a bound.
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta, **settings))


def _pld(events: tuple[Event, ...], delta: float) -> float:
    mechanisms = [(e.noise_multiplier, e.sample_rate, e.steps) for e in events]
    span = _opacus("rdp", events, delta * 1e-4, alphas=WHOLE_ORDERS)
    return loss_distribution.epsilon(mechanisms, delta, span)


ACCOUNTANTS: dict[str, Callable[[tuple[Event, ...], float], float]] = {
    "prv": _prv,
    "rdp": _rdp,
    "pld": _pld,
}
