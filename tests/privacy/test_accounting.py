"""ε from σ and σ from ε: goldens, analytic limits, and three accountants against one another."""

import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from fedtuners.privacy.accounting import (
    Event,
    PrivacyError,
    calibrate,
    choose_delta,
    epsilon,
    merged,
)

GOLDEN = [Event(1.5, 0.04, 2250)]


@pytest.mark.parametrize(
    ("accountant", "golden"), [("rdp", 7.3291), ("prv", 6.7774), ("pld", 6.7688)]
)
def test_goldens(accountant: str, golden: float) -> None:
    # PRV's upper bound is within its error of 0.01, which its release sets
    tolerance = 2e-3 if accountant == "prv" else 5e-4
    assert epsilon(GOLDEN, 1e-5, accountant) == pytest.approx(golden, abs=tolerance)


@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 9])
def test_without_sampling_it_is_the_gaussian_mechanism(sigma: float, steps: int) -> None:
    # Balle and Wang (arXiv:1805.06530), theorem 8, at σ/√steps
    def delta(eps: float) -> float:
        s = sigma / math.sqrt(steps)
        return norm.cdf(0.5 / s - eps * s) - math.exp(eps) * norm.cdf(-0.5 / s - eps * s)

    exact = brentq(lambda eps: delta(eps) - 1e-5, 0, 200)
    event = [Event(sigma, 1.0, steps)]
    assert epsilon(event, 1e-5, "pld") == pytest.approx(exact, abs=2e-3)
    assert exact <= epsilon(event, 1e-5, "prv") <= exact + 0.02
    assert epsilon(event, 1e-5, "rdp") > exact


@pytest.mark.parametrize("rate", [0.04, 1.0])
@pytest.mark.parametrize("sigma", [0.05, 0.06, 0.07, 0.1])
def test_noise_too_small_for_a_float_is_never_called_private(sigma: float, rate: float) -> None:
    event = [Event(sigma, rate, 1)]
    assert epsilon(event, 1e-5, "pld") > 0.99 * epsilon(event, 1e-5, "prv") > 70


@pytest.mark.parametrize(
    "events",
    [
        [Event(0.8, 0.021, 100)],
        [Event(1.0, 0.02, 3)],
        [Event(1.0, 0.021, 100), Event(0.7, 0.085, 2)],
        [Event(0.6, 0.3, 10)],
    ],
)
def test_accountants_agree(events: list[Event]) -> None:
    prv, rdp, pld = (epsilon(events, 2e-4, name) for name in ("prv", "rdp", "pld"))
    assert pld == pytest.approx(prv, abs=0.015)
    assert pld <= rdp


def test_composition_is_additive_in_steps_and_order_does_not_matter() -> None:
    a, b = Event(1.0, 0.02, 10), Event(2.0, 0.1, 5)
    assert merged([a, b, a]) == (Event(1.0, 0.02, 20), b)
    assert epsilon([a, b, a], 1e-5) == epsilon([b, a, a], 1e-5)
    assert epsilon([], 1e-5) == 0
    assert epsilon([Event(0.0, 0.1, 1)], 1e-5) == math.inf


@pytest.mark.parametrize("accountant", ["prv", "rdp", "pld"])
def test_calibrated_noise_spends_the_budget_and_no_more(accountant: str) -> None:
    planned = [Event(2.0, 0.1, 2), Event(1.0, 0.02, 60)]
    sigma = calibrate(3.0, 1e-4, planned, accountant)
    scaled = [Event(e.noise_multiplier * sigma, e.sample_rate, e.steps) for e in planned]
    assert 2.9 < epsilon(scaled, 1e-4, accountant) <= 3.0


def test_delta_stays_below_one_over_n() -> None:
    assert choose_delta(None, 1000) < 1 / 1000
    assert choose_delta(1e-5, 1000) == 1e-5
    with pytest.raises(PrivacyError, match="must be below 1/1000"):
        choose_delta(1e-3, 1000)


def test_refusals_name_the_fix() -> None:
    with pytest.raises(PrivacyError, match="choose from prv, rdp, pld"):
        epsilon(GOLDEN, 1e-5, "gdp")
    with pytest.raises(PrivacyError, match=r"train\.batch_size"):
        epsilon([Event(1.0, 1.5, 1)], 1e-5)
    with pytest.raises(PrivacyError, match="must be above 0"):
        calibrate(0.0, 1e-5, GOLDEN)
