"""FFA-LoRA: freeze all factors but one, average that one (arXiv:2403.12313).

With A the same everywhere, Σ p_i B_i A = B̄ A: exact, with half of LoRA's numbers on the wire. The
same holds for any adapter that is linear in one factor; for ABBA that is B2.
"""

from typing import ClassVar

from strategies.fedavg_lora import FedAvgLora


class FfaLora(FedAvgLora):
    """FedAvg over the adapter's linear factor alone; the other factors stay at their start."""

    only_linear_factor: ClassVar[bool] = True
