"""LoRA-SB (arXiv 2411.19557): ΔW = B R A with B and A frozen, and only R (r×r) trained."""

from fedtuners.adapters.lora_sb.adapter import LoraSb, set_start, start_state
from fedtuners.adapters.lora_sb.config import LoraSbConfig
from fedtuners.adapters.lora_sb.layer import LoraSbLinear
from fedtuners.adapters.lora_sb.model import LoraSbModel
from fedtuners.adapters.registration import register

register("lora_sb", LoraSbConfig, LoraSbModel)

__all__ = ["LoraSb", "LoraSbConfig", "LoraSbLinear", "LoraSbModel", "set_start", "start_state"]
