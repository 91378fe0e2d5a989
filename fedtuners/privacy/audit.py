"""One-run audits: how much ε a training is seen to spend, from below.

m canaries join the data by m coin tosses, and whoever sees all released gradients guesses them. Two
bounds follow from the right guesses. That of Steinke et al. (arXiv:2305.08846) assumes nothing.
That of Nasr et al. (arXiv:2302.07956) takes the noise for Gaussian and the canaries for
independent, as they are here, and is much the sharper. A bound above the claimed ε proves that
something is broken. Whether the sampling is Poisson's shows in how often each canary took part.

A canary is an example whose gradient is one coordinate of its own, so that neither other canaries
nor the optimiser blur what the mechanism lets through. The mechanism is the project's own: its
sampling, clipping, noise and normalisation, from fedtuners.privacy.dpsgd.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import beta, binom, chi2, norm
from torch import Tensor, nn

from fedtuners.privacy.accounting import Event, calibrate, epsilon
from fedtuners.privacy.dpsgd import Noise, private_gradients
from fedtuners.privacy.randomness import PrivateRandom, Randomness
from fedtuners.privacy.sampling import Draw, Part, poisson_draws, units_of
from fedtuners.tasks import Batch, Encoded, batches

CONFIDENCE = 0.95  # of the assumption-free bound, as in its paper
SURE = 0.999  # of the Gaussian bound, which comes near the truth and must not cry wolf
LARGEST = 20.0  # no lower bound above it is looked for
SHARES = (0.2, 0.5, 1.0)  # of the canaries that are guessed; the best counts, and is paid for
LOUDNESS = 20.0  # norm of a canary's gradient before clipping, in units of the clip


@dataclass(frozen=True)
class Claim:
    """What an audited training says of itself."""

    epsilon: float
    delta: float
    sample_rate: float
    steps: int

    @property
    def noise_multiplier(self) -> float:
        """The σ that makes it true."""
        planned = [Event(1.0, self.sample_rate, self.steps)]
        return calibrate(self.epsilon, self.delta, planned, "pld")


@dataclass(frozen=True)
class Finding:
    """What an audit saw.

    Attributes:
        epsilon: the lower bound of ε for Gaussian noise, at 99.9 % confidence.
        assumption_free: that of arXiv:2305.08846, at 95 %.
        claimed: the ε that was claimed.
        sampling: the probability of participation as even, or as uneven, as this under Poisson
            sampling.
    """

    epsilon: float
    assumption_free: float
    claimed: float
    sampling: float

    @property
    def broken(self) -> bool:
        """Whether the claim cannot be true."""
        return max(self.epsilon, self.assumption_free) > self.claimed or self.sampling < 1e-6


def lower_bound(
    right: int, guesses: int, canaries: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """The largest ε that so many right guesses refute (arXiv:2305.08846, theorem 5.2).

    Args:
        right: how many of the guesses were right.
        guesses: r.
        canaries: m.
        delta: δ.
        confidence: of the bound.
    """
    low, high = 0.0, LARGEST
    if p_value(right, guesses, canaries, low, delta) > 1 - confidence:
        return 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        refuted = p_value(right, guesses, canaries, middle, delta) <= 1 - confidence
        low, high = (middle, high) if refuted else (low, middle)
    return low


def p_value(right: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """The most probable that so many right guesses can be under (ε, δ)-privacy.

    P[Binomial(r, e^ε / (1 + e^ε)) ≥ v] + 2 m δ max_i P[v > Binomial ≥ v − i] / i.
    """
    rate = 1 / (1 + np.exp(-epsilon))
    steps = np.arange(1, right + 1)
    below = np.cumsum(binom.pmf(right - steps, guesses, rate))
    worst = float((below / steps).max(initial=0.0))
    return min(1.0, float(binom.sf(right - 1, guesses, rate)) + 2 * canaries * delta * worst)


def guess(scores: Tensor, joined: Tensor, delta: float, confidence: float) -> float:
    """The best lower bound from scores that are higher for canaries that joined.

    Args:
        scores: (m,).
        joined: (m,) the coin tosses.
        delta: δ.
        confidence: of the best, shared among the numbers of guesses that are tried.
    """
    canaries = len(scores)
    order = scores.argsort(descending=True)
    share = 1 - (1 - confidence) / len(SHARES)
    bounds = []
    for part in SHARES:
        half = int(canaries * part / 2)
        right = int(joined[order[:half]].sum() + (~joined[order[-half:]]).sum())
        bounds.append(lower_bound(right, 2 * half, canaries, delta, share))
    return max(bounds)


def gaussian_bound(scores: Tensor, joined: Tensor, delta: float, confidence: float) -> float:
    """The lower bound from how well the upper half of the scores tells who joined.

    Clopper and Pearson bound the rates of true and false positives; a Gaussian mechanism with
    these has at least μ = Φ⁻¹(TPR) − Φ⁻¹(FPR), that is σ = 1/μ, whose ε follows
    (arXiv:2302.07956, section 4). Arguments as in `guess`.
    """
    positive = torch.zeros(len(scores), dtype=torch.bool)
    positive[scores.argsort(descending=True)[: len(scores) // 2]] = True
    inside, outside = int(joined.sum()), int((~joined).sum())
    hits, alarms = int((positive & joined).sum()), int((positive & ~joined).sum())
    risk = (1 - confidence) / 2
    true_rate = beta.ppf(risk, hits, inside - hits + 1) if hits else 0.0
    false_rate = beta.ppf(1 - risk, alarms + 1, outside - alarms) if alarms < outside else 1.0
    mu = float(norm.ppf(true_rate) - norm.ppf(false_rate))
    if mu <= 0:
        return 0.0
    return min(epsilon([Event(1 / mu, 1.0, 1)], delta, "pld"), LARGEST)


@dataclass(frozen=True)
class Training:
    """A training to be audited: what it claims, and what it really does.

    Attributes:
        claim: σ is calibrated for it.
        noise: makes the noise it adds of the one it should add.
        randomness: makes its source of noise; asked once for each step.
        shuffled: batches in the run's public order, instead of Poisson draws.
        repeats: how often all of it is done, as after a ledger that forgot.
    """

    claim: Claim
    noise: Callable[[Noise], Noise] = lambda noise: noise
    randomness: Callable[[], Randomness] = PrivateRandom
    shuffled: bool = False
    repeats: int = 1


CLEAN = Training(Claim(4.0, 1e-5, 1.0, 1))
SAMPLED = Training(Claim(2.0, 1e-5, 0.02, 50))
TRAININGS = {
    "clean": CLEAN,
    "clean, sampled": SAMPLED,
    "halved noise": replace(CLEAN, noise=lambda n: replace(n, multiplier=n.multiplier / 2)),
    "no clipping": replace(
        CLEAN, noise=lambda n: Noise(n.multiplier / LOUDNESS, n.clip * LOUDNESS, n.expected)
    ),
    "noise drawn once": replace(SAMPLED, randomness=lambda: PrivateRandom(seed=7)),
    "ledger reset": replace(CLEAN, repeats=8),
    "shuffled, not Poisson": replace(SAMPLED, shuffled=True),
}


def audit(training: Training, canaries: int = 1000, seed: int | None = None) -> Finding:
    """Train once on the canaries that joined, and bound ε from what was released.

    Args:
        training: what to audit.
        canaries: m.
        seed: of the coin tosses and the training, for tests; None: secret.
    """
    claim, tosses = training.claim, PrivateRandom(seed)
    joined = tosses.uniform(canaries) < 0.5
    members = torch.nonzero(joined).flatten().tolist()
    encoded = _encoded(members)
    order = _public_steps(canaries, claim)
    noise = training.noise(Noise(claim.noise_multiplier, 1.0, claim.sample_rate * len(members)))
    released, taken = [], torch.zeros(canaries)
    for _ in range(training.repeats):
        draws = _shuffled(members, order, claim) if training.shuffled else _poisson(encoded, claim)
        for draw in draws:
            for part in draw:
                taken[part.batch.labels] += 1
            model = _Coordinates(canaries)
            steps = private_gradients(model, _TASK, [draw], noise, training.randomness())
            released.append(next(steps)[0].flatten() * noise.expected)
    seen = torch.stack(released)
    scores = (seen.sum(0), _spread(seen), seen[order % len(seen), torch.arange(canaries)])
    sure, confident = (1 - (1 - level) / len(scores) for level in (SURE, CONFIDENCE))
    return Finding(
        max(gaussian_bound(score, joined, claim.delta, sure) for score in scores),
        max(guess(score, joined, claim.delta, confident) for score in scores),
        claim.epsilon,
        _sampling(taken[joined], claim.steps * training.repeats, claim.sample_rate),
    )


def _spread(seen: Tensor) -> Tensor:
    """How much each coordinate varies: with the same noise in each step, only its canary can."""
    return seen.amax(0) - seen.amin(0) if len(seen) > 1 else seen.flatten()


def _sampling(taken: Tensor, steps: int, rate: float) -> float:
    """Two-sided p-value of how often each took part against Binomial(T, q); 1 at q = 1."""
    if rate >= 1:
        return 1.0
    deviations = (taken - steps * rate).square() / (steps * rate * (1 - rate))
    lower = float(chi2.cdf(float(deviations.sum()), len(taken)))
    return 2 * min(lower, 1 - lower)


class _Coordinates(nn.Module):
    """One weight per canary."""

    def __init__(self, canaries: int) -> None:
        super().__init__()
        self.linear = nn.Linear(canaries, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class _CanaryTask:
    """The loss of canary i is LOUDNESS · w_i, whose gradient is its coordinate."""

    def per_example_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, _Coordinates)
        ones = nn.functional.one_hot(batch.labels, model.linear.in_features).float()
        return LOUDNESS * model(ones).squeeze(1)


_TASK: Any = _CanaryTask()  # of a Task it has what training uses


def _encoded(members: list[int]) -> Encoded:
    return Encoded(tuple({"input_ids": [1], "attention_mask": [1], "labels": i} for i in members))


def _poisson(encoded: Encoded, claim: Claim) -> Iterator[Draw]:
    units = units_of([{}] * len(encoded), None)
    return poisson_draws(
        encoded, units, 0, claim.sample_rate, claim.steps, len(encoded), PrivateRandom()
    )


def _public_steps(canaries: int, claim: Claim) -> Tensor:
    """The step at which the public order would show each canary."""
    size = max(1, round(canaries * claim.sample_rate))
    every = batches(_encoded(list(range(canaries))), 0, size, -(-canaries // size), (0, 1, 0))
    steps = torch.empty(canaries, dtype=torch.long)
    for step, batch in enumerate(every):
        steps[batch.labels] = step
    return steps


def _shuffled(members: list[int], order: Tensor, claim: Claim) -> Iterator[Draw]:
    """Batches in the public order, as training without privacy takes them."""
    from fedtuners.tasks import collate

    for step in range(claim.steps):
        drawn = [i for i in members if order[i] == step]
        yield [Part.of(collate(_encoded(drawn).items, 0))] if drawn else []
