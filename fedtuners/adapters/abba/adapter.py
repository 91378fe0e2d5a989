"""ABBA (arXiv 2505.14238) as the federation sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from peft.config import PeftConfig
from torch import Tensor

from fedtuners.adapters.abba.config import AbbaConfig
from fedtuners.adapters.abba.khatri_rao import abba_scale, khatri_rao
from fedtuners.adapters.base import Adapter, Task


@dataclass(frozen=True, kw_only=True)
class Abba(Adapter):
    """ΔW = s (B1 A1) ⊙ (B2 A2), s = α²/√(r1 r2), of rank up to r1·r2.

    Attributes:
        rank1: r1, the pair that starts from the SVD of W0.
        rank2: r2, the pair that starts at zero.
        alpha: α.
    """

    name: ClassVar[str] = "abba"
    factors: ClassVar[tuple[str, ...]] = ("abba_A1", "abba_B1", "abba_A2", "abba_B2")
    linear_factor: ClassVar[str] = "abba_B2"

    rank1: int = 16
    rank2: int = 16
    alpha: float = 16.0

    def config(self, task: Task) -> PeftConfig:
        """The PEFT configuration."""
        return AbbaConfig(
            r1=self.rank1,
            r2=self.rank2,
            alpha=self.alpha,
            dropout=self.dropout,
            target_modules=self.target_modules(),
            task_type=self.task_type(task),
        )

    def low_rank(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The Khatri–Rao factors, the scale in the left one."""
        L, R = khatri_rao(*(tensors[factor] for factor in self.factors))
        return abba_scale(self.alpha, self.rank1, self.rank2) * L, R

    def module_ranks(self) -> tuple[int, ...]:
        """(r1, r2)."""
        return (self.rank1, self.rank2)
