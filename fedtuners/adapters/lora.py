"""LoRA (arXiv 2106.09685) by stock PEFT: ΔW = (α/r) B A.

FFA-LoRA (arXiv 2403.12313) is LoRA of which only B trains: `state.freeze_all_but(model, "lora_B")`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from peft import LoraConfig
from peft.config import PeftConfig
from torch import Tensor

from fedtuners.adapters.base import Adapter, Task


@dataclass(frozen=True, kw_only=True)
class Lora(Adapter):
    """ΔW = (α/r) B A with B (m×r) starting at zero and A (r×n) Kaiming.

    Attributes:
        rank: r.
        alpha: α.
    """

    name: ClassVar[str] = "lora"
    factors: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B")
    linear_factor: ClassVar[str] = "lora_B"

    rank: int = 8
    alpha: int = 16

    def config(self, task: Task) -> PeftConfig:
        """The PEFT configuration."""
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules(),
            task_type=self.task_type(task),
        )

    def low_rank(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """((α/r) B, A)."""
        return (self.alpha / self.rank) * tensors["lora_B"], tensors["lora_A"]

    def module_ranks(self) -> tuple[int, ...]:
        """(r,)."""
        return (self.rank,)
