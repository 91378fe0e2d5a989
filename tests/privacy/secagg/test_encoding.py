"""Fixed point: the sum of encodings is the weighted mean within the stated bound."""

from fractions import Fraction

import numpy as np
import pytest

from fedtuners.privacy.secagg import FixedPoint, SecAggError, add_up


def exact_mean(values: list[np.ndarray], weights: list[int]) -> list[Fraction]:
    total = sum(weights)
    return [
        sum((w * Fraction(float(x)) for x, w in zip(column, weights, strict=True)), Fraction(0))
        / total
        for column in zip(*values, strict=True)
    ]


@pytest.mark.parametrize(
    ("bits", "clip", "max_weight"), [(64, 1024.0, 2**20), (64, 1e-3, 10), (32, 4.0, 2**12)]
)
@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 7, 10], [10, 10, 10]])
def test_mean_is_within_the_bound(
    bits: int, clip: float, max_weight: int, weights: list[int]
) -> None:
    fixed = FixedPoint(3, clip, max_weight, bits)
    random = np.random.default_rng(0)
    values = [random.uniform(-clip, clip, 200) for _ in weights]
    values[0][:3] = clip, -clip, 0.0

    total = fixed.decode(add_up([fixed.encode(x, w) for x, w in zip(values, weights, strict=True)]))

    bound = Fraction(fixed.error_bound(3, sum(weights)))
    errors = [
        abs(Fraction(float(got)) - want)
        for got, want in zip(total.mean, exact_mean(values, weights), strict=True)
    ]
    assert (total.clients, total.clipped, total.weight) == (3, 0, sum(weights))
    assert max(errors) <= bound
    assert max(errors) > bound / 100  # the bound says something


def test_the_largest_sum_does_not_wrap() -> None:
    for bits, max_weight in ((64, 2**20), (32, 2**10)):
        fixed = FixedPoint(20, 8.0, max_weight, bits)
        for sign in (1.0, -1.0):
            vectors = [fixed.encode(np.full(4, sign * 8.0), max_weight) for _ in range(20)]
            assert np.array_equal(fixed.decode(add_up(vectors)).mean, np.full(4, sign * 8.0))


def test_a_scale_one_step_larger_would_wrap_or_waste_at_most_two_bits() -> None:
    fixed = FixedPoint(20, 8.0, 2**20, 64)
    largest = 20 * 8.0 * 2**20 * fixed.scale
    assert 2.0**61 < largest <= 2.0**62


def test_values_beyond_the_clip_are_cut_and_counted() -> None:
    fixed = FixedPoint(2, 1.0, 10, 64)
    total = fixed.decode(
        add_up([fixed.encode(np.array([5.0, -9.0]), 2), fixed.encode(np.array([0.5, 0.5]), 2)])
    )
    assert total.clipped == 1
    assert np.allclose(total.mean, [0.75, -0.25], atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(SecAggError, match="NaN or infinite"):
        FixedPoint(2, 1.0, 10, 64).encode(np.array([0.0, bad]), 1)


@pytest.mark.parametrize("weight", [0, -1, 11])
def test_weights_outside_the_range_are_refused_without_telling_them(weight: int) -> None:
    with pytest.raises(SecAggError, match="max_examples") as refused:
        FixedPoint(2, 1.0, 10, 64).encode(np.array([0.0]), weight)
    assert str(weight) not in str(refused.value).replace("10", "").replace("1 …", "")


def test_settings_that_do_not_fit_the_ring_name_the_fix() -> None:
    with pytest.raises(SecAggError, match="lower clip or max_examples, or take bits=64"):
        FixedPoint(10, 1024.0, 2**20, 32)
    with pytest.raises(SecAggError, match="bits=16"):
        FixedPoint(10, 1.0, 10, 16)
    with pytest.raises(SecAggError, match="above 0"):
        FixedPoint(10, 0.0, 10, 64)


def test_a_sum_whose_masks_did_not_cancel_is_noticed() -> None:
    fixed = FixedPoint(2, 1.0, 10, 64)
    noise = np.random.default_rng(0).integers(0, 2**64, 5, dtype=np.uint64)
    with pytest.raises(SecAggError, match="did not cancel"):
        fixed.decode(noise)
