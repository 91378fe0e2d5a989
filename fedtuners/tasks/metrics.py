"""Scores with their 95 % confidence intervals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fedtuners.tasks.answers import same_mathematics, same_number, same_text

Z = 1.959963984540054  # the standard normal's 97.5 % point
LOWER_IS_BETTER = ("loss", "perplexity")

SAME: dict[str, Callable[[str, str], bool]] = {
    "exact_match": same_text,
    "accuracy": same_text,
    "choice": same_text,
    "gsm8k": same_number,
    "math": same_mathematics,
}


@dataclass(frozen=True)
class Metric:
    """A score over `count` examples and its 95 % interval [low, high]."""

    name: str
    value: float
    low: float
    high: float
    count: int

    @property
    def higher_is_better(self) -> bool:
        """False for losses."""
        return self.name not in LOWER_IS_BETTER

    def __str__(self) -> str:
        return f"{self.name} {self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.count})"


def score(name: str, predictions: Sequence[str], references: Sequence[str]) -> Metric:
    """Compare predictions with references by the metric `name`.

    Raises
    ------
    ValueError
        If there is nothing to compare or the two differ in length.
    """
    if not references or len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions for {len(references)} references cannot be scored"
        )
    if name == "matthews":
        return matthews(predictions, references)
    same = SAME[name]
    return proportion(name, [same(p, r) for p, r in zip(predictions, references, strict=True)])


def proportion(name: str, hits: Sequence[bool]) -> Metric:
    """The share of hits with Wilson's interval (1927), sound at 0, at 1 and for few rows."""
    n, p = len(hits), sum(hits) / len(hits)
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return Metric(name, p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), n)


def mean_loss(losses: Sequence[float], perplexity: bool = False) -> Metric:
    """The mean loss of sequences (nats per token), or its exponential, with a normal interval."""
    mean = fmean(losses)
    half = Z * stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else math.inf
    name, scale = ("perplexity", math.exp) if perplexity else ("loss", float)
    return Metric(name, scale(mean), scale(mean - half), scale(mean + half), len(losses))


def matthews(predictions: Sequence[str], references: Sequence[str]) -> Metric:
    """Matthews' correlation over any number of classes (Gorodkin 2004), as GLUE scores CoLA.

    The interval is Fisher's, of a correlation over that many rows; 0 when either side is constant.
    """
    n = len(references)
    classes = sorted({*predictions, *references})
    predicted = [sum(p == c for p in predictions) for c in classes]
    true = [sum(r == c for r in references) for c in classes]
    hits = sum(p == r for p, r in zip(predictions, references, strict=True))
    covariance = hits * n - sum(p * t for p, t in zip(predicted, true, strict=True))
    spread = (n * n - sum(p * p for p in predicted)) * (n * n - sum(t * t for t in true))
    value = covariance / math.sqrt(spread) if spread else 0.0
    if n <= 3 or abs(value) == 1:
        return Metric("matthews", value, value, value, n)
    centre, half = math.atanh(value), Z / math.sqrt(n - 3)
    return Metric("matthews", value, math.tanh(centre - half), math.tanh(centre + half), n)
