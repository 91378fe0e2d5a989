"""What leaves a client without noise: the words of a text, and who was among the rows.

`words_in_gradient`: the gradient of A in y = B (A x) is Σ_tokens (Bᵀ δ) xᵀ, so its rows lie in the
span of the inputs x. In front of the first layer an input is a word's embedding, normalised: a word
is in the text if its vector lies in that span. It works for any text of fewer words than the rank,
without optimisation, and holds for whatever trains on the inputs of the first layer (compare
arXiv:2105.05354). Averaging over clients mixes the spans and hides nothing by itself.

`membership`: how well a loss tells rows that were trained on from rows that were not
(Yeom et al., arXiv:1709.01604; the rates at few false alarms, Carlini et al., arXiv:2112.03570).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def words_in_gradient(gradient: Tensor, vectors: Tensor, tolerance: float = 1e-2) -> list[int]:
    """The words whose vector lies in the span of a gradient's rows.

    Args:
        gradient: that of A (r, n), or of any matrix whose rows are combinations of the inputs.
        vectors: (vocabulary, n), each word's input of the layer.
        tolerance: the part of a vector's norm that may lie outside the span.

    Returns:
        The indices of the words, in order; all of them when the span is the whole space.
    """
    _, S, Vh = torch.linalg.svd(gradient.double(), full_matrices=False)
    span = Vh[: int((S / S.max() > 1e-6).sum())]
    rows = vectors.double()
    outside = (rows - rows @ span.T @ span).norm(dim=1) / rows.norm(dim=1).clamp(min=1e-12)
    return torch.nonzero(outside < tolerance).flatten().tolist()


@dataclass(frozen=True)
class Membership:
    """How well members are told from others.

    Attributes:
        auc: the probability that a random member looks more like one than a random other; .5 is
            guessing.
        found: the share of members found at `false_alarms` false alarms.
        false_alarms: that share of the others.
    """

    auc: float
    found: float
    false_alarms: float = 0.01


def membership(
    members: Sequence[float], others: Sequence[float], false_alarms: float = 0.01
) -> Membership:
    """The score of an attack by a number that is higher for members.

    Args:
        members: for rows that were trained on; for example the base model's loss minus the tuned
            one's, so that rows which are easy for everybody do not count as members.
        others: for rows of the same kind that were not.
        false_alarms: the rate at which `found` is read.

    Raises:
        ValueError: when there are none of either.
    """
    if not members or not others:
        raise ValueError("membership needs rows that were trained on and rows that were not")
    inside = torch.tensor(members, dtype=torch.float64)
    outside = torch.tensor(others, dtype=torch.float64).sort().values
    below = torch.searchsorted(outside, inside, side="left")
    ties = torch.searchsorted(outside, inside, side="right") - below
    auc = float((below + ties / 2).mean(dtype=torch.float64) / len(outside))
    threshold = outside[-1 - int(false_alarms * len(outside))]
    return Membership(auc, float((inside > threshold).double().mean()), false_alarms)
