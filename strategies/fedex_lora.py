"""FedEx-LoRA: FedAvg made exact by a residual (arXiv:2410.09432).

ΔW_res = Σ p_i ΔW_i − ΔW(mean of the factors) is added to the frozen weight of every participant.
It has rank at most (k−1)·r for k clients of LoRA rank r, so it is kept and sent as thin factors,
never as an m×n matrix. It needs each client's own factors: not linear in the upload.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import ClassVar

import torch

from fedtuners.adapters import Adapter, by_module
from fedtuners.adapters.residual import LEFT, RIGHT
from strategies.algebra import State, compress, residual
from strategies.base import AdapterStrategy, wire_dtype
from strategies.mean import weighted_mean
from strategies.updates import Update


class FedExLora(AdapterStrategy):
    """Average every factor, and give everybody what the average misses.

    Parameters
    ----------
    adapter
        The adapter method in use.
    residual_rank
        Truncate each module's residual to this rank; None keeps it exact.
    """

    linear: ClassVar[bool] = False

    def __init__(self, adapter: Adapter, residual_rank: int | None = None) -> None:
        super().__init__(adapter)
        if residual_rank is not None and residual_rank < 1:
            raise ValueError(f"residual_rank={residual_rank} must be at least 1, or null: exact")
        self.residual_rank = residual_rank

    def check(self, adapter: Adapter) -> None:
        """Raise ValueError for an adapter whose plain average is exact already."""
        if adapter.trains_core:
            raise ValueError(
                f"strategy=fedex_lora makes up for what averaging misses, which for "
                f"adapter={adapter.name} is nothing: choose strategy=fed_sb, or adapter=lora"
            )

    def combine(self, updates: Sequence[Update], weights: Sequence[float]) -> State:
        """The mean of the factors; shares Σ p_i L_i R_i − L̄ R̄ of every module.

        L̄ and R̄ are the means as the clients receive them, so the residual also makes up for what
        a rounding wire takes from them.
        """
        mean = self.received(weighted_mean([update.state for update in updates], weights))
        uploads = [by_module(update.state) for update in updates]
        missed: State = {}
        for module, factors in by_module(mean).items():
            if not factors.keys() <= set(self.adapter.factors):
                continue  # a task head: averaging is all there is to it
            missing = residual(
                [self.adapter.low_rank(upload[module]) for upload in uploads],
                weights,
                self.adapter.low_rank(factors),
            )
            if self.residual_rank is not None:
                missing, _ = compress(missing, self.residual_rank)
            L, R = missing
            missed |= {f"{module}.{LEFT}": L, f"{module}.{RIGHT}": R}
        self.share(missed)
        return mean

    def gains(self, shapes: Mapping[str, tuple[int, int]], clients: int) -> State:
        """The residual's factors: rank (k−1)·r for LoRA; (k+1)·r1·r2 for ABBA.

        Where the mean is rounded on its way it is no mean any more, and LoRA's rank (k+1)·r too.
        """
        ranks = self.adapter.module_ranks()
        centred = len(ranks) == 1 and wire_dtype(self.federation) is None
        most = prod(ranks) * (clients - 1 if centred else clients + 1)
        gained: State = {}
        for module, (m, n) in shapes.items():
            rank = min(most, m, n, self.residual_rank or m)
            gained[f"{module}.{LEFT}"] = torch.empty(m, rank, device="meta")
            gained[f"{module}.{RIGHT}"] = torch.empty(rank, n, device="meta")
        return gained
