"""FedAvg of adapter factors (FedIT, arXiv:2305.05644).

B̄ = Σ p_i B_i and Ā = Σ p_i A_i with p_i = n_i / Σ n_j. Inexact for a product of trained factors:
B̄ Ā ≠ Σ p_i B_i A_i, and likewise for ABBA's four. Linear in the upload.
"""

from collections.abc import Sequence
from typing import ClassVar

from strategies.algebra import State
from strategies.base import AdapterStrategy
from strategies.mean import weighted_mean
from strategies.updates import Update


class FedAvgLora(AdapterStrategy):
    """Average every factor by itself."""

    linear: ClassVar[bool] = True

    def combine(self, updates: Sequence[Update], weights: Sequence[float]) -> State:
        """Σ p_i state_i, tensor by tensor."""
        return weighted_mean([update.state for update in updates], weights)
