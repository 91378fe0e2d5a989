"""An accountant of our own: the privacy loss distribution, discretised from above and composed.

One mechanism's distribution is the one whose privacy curve δ(e^ε) is the chords of the true curve
between the points of a grid ("connect the dots", Doroshenko et al., arXiv:2207.04380): it is never
below the truth. The losses of composed mechanisms add, so their distributions are convolved, by
the Fourier transform. Presence and absence of a unit are composed apart, and the worse counts.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

Array = npt.NDArray[np.float64]

POINTS = 2**18  # of the grid; the chords are that much finer than any ε that is asked for


def epsilon(mechanisms: Sequence[tuple[float, float, int]], delta: float, span: float) -> float:
    """The smallest ε of the grid at which all mechanisms together are (ε, δ)-private.

    Args:
        mechanisms: (σ, q, steps) of each Poisson-subsampled Gaussian.
        delta: δ.
        span: an ε at which they are known to be (ε, δ/10⁴)-private; the grid reaches beyond it.
    """
    reach = max(span, np.log(1e4 / delta)) + 1.0
    losses = np.linspace(-reach, reach, POINTS, endpoint=False)
    return max(_one_sided(mechanisms, delta, losses, removed) for removed in (True, False))


def _one_sided(
    mechanisms: Sequence[tuple[float, float, int]], delta: float, losses: Array, removed: bool
) -> float:
    spectrum: npt.NDArray[np.complex128] = np.ones(POINTS // 2 + 1, dtype=np.complex128)
    finite = 1.0  # probability that no mechanism's loss is beyond the grid
    for sigma, rate, steps in mechanisms:
        masses, beyond = distribution(sigma, rate, losses, removed)
        # Index 0 stands for loss 0, so that losses add as indices do, modulo the grid.
        spectrum *= np.fft.rfft(np.fft.ifftshift(masses)) ** steps
        finite *= (1 - beyond) ** steps
    masses = np.fft.fftshift(np.fft.irfft(spectrum, POINTS)).clip(min=0)
    # What wraps round the grid's ends has at most δ/10⁴ on either side.
    curve = _curve(masses, losses) + (1 - finite) + 2e-4 * delta
    private = np.flatnonzero((curve <= delta) & (losses >= 0))
    return float(losses[private[0]]) if len(private) else float("inf")


def distribution(sigma: float, rate: float, losses: Array, removed: bool) -> tuple[Array, float]:
    """Masses of one mechanism's loss on a grid, and the mass beyond its end.

    With x = e^ε, δ(x) of a discrete distribution has slope −Σ_{j>i} q_j between x_i and x_{i+1},
    where q_j = p_j / x_j is the neighbour's mass; the slopes of the chords give the masses. Below
    ε = 0 it is 1 − x + g(x) with g(x) = E[(x Q − P)₊], whose differences do not cancel.
    """
    ratios = np.exp(losses)
    below, above = privacy_curves(sigma, rate, losses, removed)
    with np.errstate(invalid="ignore"):
        high = -np.diff(above) / np.diff(ratios)
        low = 1.0 - np.diff(below) / np.diff(ratios)
    tails = np.where(losses[:-1] < 0, low, high).clip(0, 1)  # the neighbour's mass beyond i
    tails = np.minimum.accumulate(np.concatenate([[1.0], tails, [0.0]]))
    masses = -np.diff(tails) * ratios
    # What is missing lies below the grid, where there is at most e^ε of its first ε. The rest was
    # lost to rounding, where the neighbour's tail is too small for a float, and counts as beyond.
    missing = max(1.0 - float(above[-1]) - masses.sum(), 0.0)
    under = min(missing, float(ratios[0]))
    masses[0] += under
    return masses, float(above[-1]) + missing - under


def privacy_curves(sigma: float, rate: float, losses: Array, removed: bool) -> tuple[Array, Array]:
    """E[(x Q − P)₊] and E[(P − x Q)₊], that is δ, at each ε = log x of one mechanism.

    P is the mixture (1 − q) N(0, σ²) + q N(1, σ²) and Q is N(0, σ²) when a unit is removed, the
    other way round when it is added. The loss is monotonic in the output, so each region is a
    half-line from `threshold`.
    """
    ratios, sign = np.exp(losses), 1.0 if removed else -1.0
    inside = np.exp(sign * losses) - (1 - rate)
    with np.errstate(divide="ignore", invalid="ignore"):
        threshold = sigma**2 * np.log(inside / rate) + 0.5
    threshold = np.where(inside > 0, threshold, -np.inf)

    def masses(side: float) -> tuple[Array, Array]:
        plain = ndtr(side * threshold / sigma)
        mixture = (1 - rate) * plain + rate * ndtr(side * (threshold - 1) / sigma)
        return (mixture, plain) if removed else (plain, mixture)

    (p_below, q_below), (p_above, q_above) = masses(sign), masses(-sign)
    below = np.maximum(ratios * q_below - p_below, 0.0)
    return below, np.maximum(p_above - ratios * q_above, 0.0)


def _curve(masses: Array, losses: Array) -> Array:
    """δ at each ε of the grid: Σ_{j>i} p_j (1 − e^{ε_i − ε_j})."""
    above = _tail_sums(masses)
    neighbour = _tail_sums(masses * np.exp(-losses))
    return np.asarray(above - np.exp(losses) * neighbour)


def _tail_sums(values: Array) -> Array:
    """Σ_{j>i} of each i."""
    return np.asarray(np.cumsum(values[::-1])[::-1] - values)
