"""Scores and their intervals against known values."""

import math
import random

import pytest

from fedtuners.tasks.metrics import matthews, mean_loss, proportion, score


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_intervals(hits: int, count: int, low: float, high: float) -> None:
    metric = proportion("accuracy", [True] * hits + [False] * (count - hits))

    assert metric.value == hits / count
    assert (metric.low, metric.high) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_holds_the_truth_about_95_times_in_100() -> None:
    draw, truth, held = random.Random(0), 0.83, 0
    for _ in range(1000):
        metric = proportion("accuracy", [draw.random() < truth for _ in range(60)])
        held += metric.low <= truth <= metric.high
    assert 930 <= held <= 975


def test_matthews_is_the_correlation_of_two_classes() -> None:
    pairs = ["tp"] * 6 + ["tn"] * 3 + ["fp"] * 1 + ["fn"] * 2
    predictions = ["yes" if pair in ("tp", "fp") else "no" for pair in pairs]
    references = ["yes" if pair in ("tp", "fn") else "no" for pair in pairs]

    metric = matthews(predictions, references)

    assert metric.value == pytest.approx((6 * 3 - 1 * 2) / math.sqrt(7 * 8 * 4 * 5))
    assert metric.low < metric.value < metric.high
    assert matthews(["yes"] * 4, ["yes", "no"] * 2).value == 0.0
    assert matthews(["a", "b", "c", "a"], ["a", "b", "c", "a"]).value == 1.0


def test_losses_have_a_mean_and_perplexity_its_exponential() -> None:
    loss = mean_loss([1.0, 3.0])

    assert (loss.value, loss.high - loss.low) == pytest.approx(
        (2.0, 2 * 1.95996 * math.sqrt(2) / math.sqrt(2)), rel=1e-5
    )
    assert mean_loss([1.0, 3.0], perplexity=True).value == pytest.approx(math.e**2)


def test_every_metric_compares_in_its_own_way() -> None:
    assert score("exact_match", ["a b", "c"], ["a  b", "d"]).value == 0.5
    assert score("gsm8k", ["it is 4", "5"], ["#### 4.0", "#### 6"]).value == 0.5
    assert score("math", [r"\boxed{1/2}"], [r"\boxed{0.5}"]).value == 1.0
    assert str(score("accuracy", ["yes"], ["yes"])) == "accuracy 1.000 [0.207, 1.000] (n=1)"


def test_nothing_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="0 predictions for 0 references"):
        score("exact_match", [], [])
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        score("exact_match", ["a"], ["a", "b"])
