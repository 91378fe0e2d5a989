"""PEFT configuration of ABBA (arXiv 2505.14238)."""

from dataclasses import dataclass, field

from peft.config import PeftConfig
from peft.utils import PeftType


@dataclass
class AbbaConfig(PeftConfig):
    """Configuration of an `AbbaModel`.

    Attributes:
        r1: rank of the first pair, which starts from the SVD of W0.
        r2: rank of the second pair, which starts at zero.
        alpha: the scale is s = alpha² / √(r1 r2); the paper finds 16 to 32 best.
        target_modules: "all-linear", a regular expression, or names as in PEFT's LoraConfig.
        exclude_modules: a regular expression or names to leave out.
        dropout: dropout on the branch's input.
        modules_to_save: modules trained and saved in full, such as a task head.
    """

    r1: int = 16
    r2: int = 16
    alpha: float = 16.0
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    dropout: float = 0.0
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["ABBA"]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
