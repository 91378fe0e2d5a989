"""Poisson sampling: every unit by itself, empty draws included, units whole."""

import pytest
import torch
from models import examples

from fedtuners.privacy.accounting import PrivacyError
from fedtuners.privacy.randomness import PrivateRandom
from fedtuners.privacy.sampling import Draw, poisson_draws, units_of

ENCODED = examples("causal_lm", rows=40)
ROWS = [{"user": row % 13} for row in range(40)]


def draws(rate: float, steps: int, column: str | None = None, part_rows: int = 4) -> list[Draw]:
    units = units_of(ROWS, column)
    randomness = PrivateRandom(seed=0)
    return list(poisson_draws(ENCODED, units, 0, rate, steps, part_rows, randomness))


def test_sizes_are_binomial_and_may_be_zero() -> None:
    sizes = torch.tensor([float(sum(part.units for part in draw)) for draw in draws(0.05, 2000)])
    assert sizes.mean() == pytest.approx(40 * 0.05, rel=0.05)
    assert sizes.var() == pytest.approx(40 * 0.05 * 0.95, rel=0.1)  # a shuffled batch's is 0
    assert (sizes == 0).float().mean() == pytest.approx(0.95**40, rel=0.25)


def test_parts_hold_at_most_the_physical_batch() -> None:
    for draw in draws(0.5, 20):
        assert all(1 <= len(part.batch) <= 4 for part in draw)


def test_a_users_rows_stay_together() -> None:
    assert len(units_of(ROWS, "user")) == 13
    for draw in draws(1.0, 3, column="user", part_rows=7):
        assert sum(part.units for part in draw) == 13
        assert sum(len(part.batch) for part in draw) == 40
        for part in draw:
            assert part.owners.unique().tolist() == list(range(part.units))


def test_a_user_with_many_rows_gives_a_random_few() -> None:
    (draw,) = draws(1.0, 1, column="user", part_rows=2)
    assert [len(part.batch) for part in draw] == [2] * 13


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"privacy\.unit=patient is no column"):
        units_of(ROWS, "patient")
