"""The audits: a clean training stays under its ε, and every broken one is caught."""

import math

import pytest
import torch

from fedtuners.privacy.audit import (
    TRAININGS,
    Finding,
    audit,
    gaussian_bound,
    guess,
    lower_bound,
    p_value,
)

CLEAN = [name for name in TRAININGS if name.startswith("clean")]


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_training_stays_under_its_epsilon(name: str) -> None:
    found = audit(TRAININGS[name])
    assert not found.broken, found


@pytest.mark.parametrize("name", sorted(TRAININGS.keys() - set(CLEAN)))
def test_a_broken_training_is_caught(name: str) -> None:
    found = audit(TRAININGS[name])
    assert found.broken, (name, found)


def test_the_clean_bound_says_something() -> None:
    found = audit(TRAININGS["clean"])
    assert found.epsilon > 1
    assert 0.5 < found.assumption_free < 4


def test_shuffling_shows_in_who_took_part() -> None:
    assert audit(TRAININGS["shuffled, not Poisson"]).sampling < 1e-6
    assert audit(TRAININGS["clean, sampled"]).sampling > 1e-6


def test_the_assumption_free_bound_is_the_binomials_without_delta() -> None:
    # all of r guesses right has probability (e^ε / (1 + e^ε))^r
    rate = 0.05 ** (1 / 200)
    assert lower_bound(200, 200, 1000, delta=0.0, confidence=0.95) == pytest.approx(
        math.log(rate / (1 - rate)), abs=2e-3
    )
    assert lower_bound(100, 200, 1000, delta=0.0) == 0
    assert p_value(190, 200, 1000, 2.0, 1e-4) > p_value(190, 200, 1000, 2.0, 0.0)


def test_bounds_at_epsilon_four_pass_clean_noise_and_catch_halved() -> None:
    # Gaussian noise of (4, 1e-5): a thousand canaries give about 1.5 at 95 %
    draw = torch.Generator().manual_seed(0)
    joined = torch.rand(1000, generator=draw) < 0.5
    noise = torch.randn(1000, generator=draw)
    clean = guess(joined + 1.08 * noise, joined, 1e-5, 0.95)
    halved = guess(joined + 0.54 * noise, joined, 1e-5, 0.95)
    assert 1.0 < clean < 2.0 < halved
    assert gaussian_bound(joined + 1.08 * noise, joined, 1e-5, 0.95) < 4
    assert gaussian_bound(joined + 0.54 * noise, joined, 1e-5, 0.95) > 4


def test_useless_scores_bound_nothing() -> None:
    draw = torch.Generator().manual_seed(1)
    joined, scores = torch.rand(1000, generator=draw) < 0.5, torch.randn(1000, generator=draw)
    assert gaussian_bound(scores, joined, 1e-5, 0.999) == 0
    assert not Finding(1.0, 1.0, 1.0, 0.5).broken
