"""Adapter methods: LoRA by stock PEFT, LoRA-SB and ABBA as PEFT tuners of our own.

Importing this package registers the tuners with PEFT. Usable with plain PEFT, without the rest of
the project: `get_peft_model(model, LoraSbConfig(...))`, or `LoraSb(rank=64).attach(model, ...)`.
"""

import warnings

from fedtuners.adapters.abba import Abba, AbbaConfig, AbbaModel
from fedtuners.adapters.base import Adapter, Start
from fedtuners.adapters.estimate import (
    estimate_updates,
    range_basis,
    sketch_core,
    sketch_range,
    start_from_core,
)
from fedtuners.adapters.export import export_lora
from fedtuners.adapters.lora import Lora
from fedtuners.adapters.lora_sb import LoraSb, LoraSbConfig, LoraSbModel, set_start, start_state
from fedtuners.adapters.residual import (
    attach_residual,
    clear_residual,
    merge_residual,
    residuals,
)
from fedtuners.adapters.state import (
    State,
    adapter_state,
    by_module,
    freeze_all_but,
    load_state,
    modules,
    trainable_names,
)

# PEFT asks transformers for a property by its old name, once a process: nothing to be done here.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

__all__ = [
    "Abba",
    "AbbaConfig",
    "AbbaModel",
    "Adapter",
    "Lora",
    "LoraSb",
    "LoraSbConfig",
    "LoraSbModel",
    "Start",
    "State",
    "adapter_state",
    "attach_residual",
    "by_module",
    "clear_residual",
    "estimate_updates",
    "export_lora",
    "freeze_all_but",
    "load_state",
    "merge_residual",
    "modules",
    "range_basis",
    "residuals",
    "set_start",
    "sketch_core",
    "sketch_range",
    "start_from_core",
    "start_state",
    "trainable_names",
]
