"""LoRA-SB (arXiv 2411.19557) as the federation sees it, and how its start is put into a model."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from peft import PeftModel
from peft.config import PeftConfig
from torch import Tensor, nn

from fedtuners.adapters.base import Adapter, Start, Task
from fedtuners.adapters.lora_sb.config import LoraSbConfig
from fedtuners.adapters.lora_sb.layer import LoraSbLinear
from fedtuners.adapters.state import State, active_adapter, tuner_layers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoraSb(Adapter):
    """ΔW = B R A with B (m×r) and A (r×n) frozen and R (r×r) trained; the scale s is 1.

    Attributes:
        rank: r.
        init: "update" starts from the update estimate, B and A orthonormal, R diagonal;
            "weights" from the SVD of W0 (LoRA-XS, arXiv 2405.17604).
    """

    name: ClassVar[str] = "lora_sb"
    factors: ClassVar[tuple[str, ...]] = ("lora_sb_R", "lora_sb_A", "lora_sb_B")
    linear_factor: ClassVar[str] = "lora_sb_R"
    trains_core: ClassVar[bool] = True

    rank: int = 64
    init: Literal["update", "weights"] = "update"

    @property
    def needs_estimate(self) -> bool:
        """Whether training must wait for `set_start`."""
        return self.init == "update"

    def config(self, task: Task) -> PeftConfig:
        """The PEFT configuration."""
        return LoraSbConfig(
            r=self.rank,
            init=self.init,
            dropout=self.dropout,
            target_modules=self.target_modules(),
            task_type=self.task_type(task),
        )

    def attach(self, base: nn.Module, task: Task, seed: int) -> PeftModel:
        """As `Adapter.attach`; with init="update" all factors are zero until `set_start`."""
        model = super().attach(base, task, seed)
        if self.needs_estimate:
            logger.info("LoRA-SB is a no-op, and cannot train, until set_start gives it B, A and R")
        return model

    def low_rank(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(B R, A)."""
        return tensors["lora_sb_B"] @ tensors["lora_sb_R"], tensors["lora_sb_A"]

    def module_ranks(self) -> tuple[int, ...]:
        """(r,)."""
        return (self.rank,)


def set_start(model: nn.Module, starts: Mapping[str, Start]) -> None:
    """Puts a start into the active LoRA-SB adapter: B and A as given, R = diag(S).

    Args:
        model: a model with a LoRA-SB adapter.
        starts: (B, A, S) by module path in the base model, for exactly the adapted modules.

    Raises:
        ValueError: when modules or shapes do not match the adapter's.
    """
    layers = tuner_layers(model)
    if starts.keys() != layers.keys():
        odd = sorted(starts.keys() ^ layers.keys())
        raise ValueError(f"the start and the adapter differ in {odd[:3]}: estimate all targets")
    for module, (B, A, S) in starts.items():
        layer = layers[module]
        if not isinstance(layer, LoraSbLinear):
            raise ValueError(f"{module} has no LoRA-SB adapter: attach one before its start")
        layer.set_factors(active_adapter(layer), B, A, torch.diag(S))


def start_state(starts: Mapping[str, Start]) -> State:
    """The tensors of a start by name, as `adapter_state` has them after `set_start`."""
    state: State = {}
    for module, (B, A, S) in starts.items():
        state[f"{module}.lora_sb_R"] = torch.diag(S)
        state[f"{module}.lora_sb_A"] = A.contiguous()
        state[f"{module}.lora_sb_B"] = B.contiguous()
    return state
