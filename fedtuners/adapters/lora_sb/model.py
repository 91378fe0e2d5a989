"""PEFT model of LoRA-SB (arXiv 2411.19557)."""

from collections.abc import Sequence

from fedtuners.adapters.lora_sb.config import LoraSbConfig
from fedtuners.adapters.lora_sb.layer import LoraSbLinear
from fedtuners.adapters.tuner import BranchTuner


class LoraSbModel(BranchTuner):
    """Puts a `LoraSbLinear` around every target of a base model."""

    prefix = "lora_sb_"
    tuner_layer_cls = LoraSbLinear

    def ranks(self, config: LoraSbConfig) -> Sequence[int]:
        """R's size, which must fit into every target."""
        return (config.r,)
