"""Fed-SB: average the r×r core between two fixed factors (arXiv:2502.15436).

Clients train R_i in ΔW = B R_i A with B and A frozen and the same for all, so that
Σ p_i B R_i A = B R̄ A exactly. r² numbers a module travel, whatever the number of clients. Each
round averages the uploads of that round only.
"""

from typing import ClassVar

from fedtuners.adapters import Adapter
from strategies.fedavg_lora import FedAvgLora


class FedSB(FedAvgLora):
    """FedAvg, made exact by an adapter whose only trained factor is its linear one."""

    only_linear_factor: ClassVar[bool] = True

    def check(self, adapter: Adapter) -> None:
        """Raise ValueError unless the adapter trains a core between fixed factors."""
        if not adapter.trains_core:
            raise ValueError(
                f"strategy=fed_sb averages the r×r core of an adapter such as lora_sb, and "
                f"adapter={adapter.name} has none: choose adapter=lora_sb, or strategy=ffa_lora to "
                f"train only {adapter.linear_factor}"
            )
