"""PEFT configuration of LoRA-SB (arXiv 2411.19557)."""

from dataclasses import dataclass, field
from typing import Literal

from peft.config import PeftConfig
from peft.utils import PeftType


@dataclass
class LoraSbConfig(PeftConfig):
    """Configuration of a `LoraSbModel`.

    Attributes:
        r: rank; R is r×r.
        target_modules: "all-linear", a regular expression, or names as in PEFT's LoraConfig.
        exclude_modules: a regular expression or names to leave out.
        init: "update" waits for the factors of the update estimate (`set_start`); "weights" starts
            from the SVD of W0 as LoRA-XS does (arXiv 2405.17604).
        dropout: dropout on the branch's input.
        modules_to_save: modules trained and saved in full, such as a task head.
    """

    r: int = 64
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    init: Literal["update", "weights"] = "update"
    dropout: float = 0.0
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["LORA_SB"]
        if self.init not in ("update", "weights"):
            raise ValueError(f"init {self.init!r}: choose 'update' or 'weights'")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
