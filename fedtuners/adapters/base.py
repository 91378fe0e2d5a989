"""What the rest of the system knows of an adapter method, whichever it is.

An `Adapter` is the description that configuration instantiates. It puts the method into a base
model by PEFT, and turns one module's tensors into thin factors of ΔW without any model, which is
all that aggregation, export and merging need.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from peft import PeftModel, TaskType, get_peft_model
from peft.config import PeftConfig
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from fedtuners.adapters.linear import check_rank
from fedtuners.adapters.state import modules

Task = Literal["causal_lm", "classification"]

TASK_TYPES = {"causal_lm": TaskType.CAUSAL_LM, "classification": TaskType.SEQ_CLS}
# The names that transformers' sequence classifiers give their heads.
HEADS = ("classifier", "score")


class Start(NamedTuple):
    """A LoRA-SB start of one module: ΔW = B diag(S) A."""

    B: Tensor  # (m, r), orthonormal columns
    A: Tensor  # (r, n), orthonormal rows
    S: Tensor  # (r,), descending


@dataclass(frozen=True, kw_only=True)
class Adapter(ABC):
    """An adapter method and its settings.

    Attributes:
        targets: "all-linear" (every linear layer but the output), a regular expression over module
            paths, or a list of module names.
        dropout: dropout on the adapter's input.
        name: the method's name.
        factors: the method's tensors in each adapted module.
        linear_factor: the factor in which ΔW is linear while all others are fixed.
        trains_core: whether only the linear factor ever trains, an r×r core between fixed ones.
    """

    name: ClassVar[str]
    factors: ClassVar[tuple[str, ...]]
    linear_factor: ClassVar[str]
    trains_core: ClassVar[bool] = False

    targets: str | list[str] = "all-linear"
    dropout: float = 0.0

    @property
    def needs_estimate(self) -> bool:
        """Whether the adapter must be given a start before it can train."""
        return False

    @abstractmethod
    def config(self, task: Task) -> PeftConfig:
        """The PEFT configuration that `attach` uses."""

    @abstractmethod
    def low_rank(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """One module's update as thin factors.

        Args:
            tensors: the module's tensors by factor name, e.g. "lora_A" and "lora_B".

        Returns:
            L (m, k) and R (k, n) with ΔW = L @ R, scaling included, where (m, n) is
            (out_features, in_features).
        """

    @abstractmethod
    def module_ranks(self) -> tuple[int, ...]:
        """The ranks that must fit into every adapted module."""

    def delta(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """ΔW (m, n) of one module; dense, so meant for tests and small models."""
        L, R = self.low_rank(tensors)
        return L @ R

    def attach(self, base: nn.Module, task: Task, seed: int) -> PeftModel:
        """Adapts a base model in place: freezes it and adds the adapter in at least fp32.

        A classifier's head trains too (PEFT's modules_to_save). The random numbers are drawn on
        the CPU from the seed alone, so every machine starts with the same adapter, and the global
        random state is left as it was.

        Args:
            base: a transformers model for the task.
            task: "causal_lm" or "classification".
            seed: seed of the adapter's random factors.

        Raises:
            ValueError: when a target is no layer, not a plain linear one, tied to the input
                embedding, or too small for the rank, naming it; when a classifier has no head of
                a known name.
        """
        if task == "classification" and not any(hasattr(base, head) for head in HEADS):
            raise ValueError(f"{type(base).__name__} has no head called {' or '.join(HEADS)}")
        if min(self.module_ranks()) < 1:
            raise ValueError(f"rank {min(self.module_ranks())} of {self.name} must be at least 1")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = get_peft_model(base, self.config(task))
        words, adapted = _embedding(base), modules(model)
        if not isinstance(self.targets, str):
            _check_targets(self.targets, adapted)
        for path, layer in adapted.items():
            if words is not None and layer.weight is words:
                raise ValueError(
                    f"{path} shares its weight with the input embedding, which an adapter on it "
                    "would leave behind: leave it out of adapter.targets"
                )
            for rank in self.module_ranks():
                check_rank(path, layer, rank)
        _full_precision_heads(model)
        return model

    def target_modules(self) -> str | list[str]:
        """The targets as PEFT wants them: a string or a plain list."""
        return self.targets if isinstance(self.targets, str) else list(self.targets)

    @staticmethod
    def task_type(task: Task) -> TaskType:
        """PEFT's name of the task."""
        if task not in TASK_TYPES:
            raise ValueError(f"task {task!r}: choose one of {', '.join(TASK_TYPES)}")
        return TASK_TYPES[task]


def _check_targets(targets: Iterable[str], paths: Iterable[str]) -> None:
    """Raise ValueError for a target that no path ends with; to PEFT one of all is enough."""
    ends = tuple(f".{path}" for path in paths)
    for target in targets:
        if not any(end.endswith(f".{target}") for end in ends):
            raise ValueError(
                f"adapter.targets: the base model has no linear layer called {target}; it adapts "
                f"{', '.join(sorted({end.rpartition('.')[2] for end in ends}))}"
            )


def _embedding(base: nn.Module) -> Tensor | None:
    """The weight of a transformers model's input embedding; None for any other module."""
    found = getattr(base, "get_input_embeddings", None)
    weight: Tensor | None = getattr(found(), "weight", None) if found else None
    return weight


def _full_precision_heads(model: nn.Module) -> None:
    """Keeps trained heads in at least fp32, where small steps are not rounded away."""
    for module in model.modules():
        if not isinstance(module, ModulesToSaveWrapper):
            continue
        for head in module.modules_to_save.values():
            if next(head.parameters()).dtype in (torch.bfloat16, torch.float16):
                head.float().register_forward_pre_hook(_cast_to_float)


def _cast_to_float(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].float(), *args[1:])
