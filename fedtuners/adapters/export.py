"""Export of any adapter to stock LoRA: a folder that PEFT, or a server of LoRAs, loads by itself.

Every method's ΔW has thin factors L R. Exported, lora_B = L with the scale in it, lora_A = R, and
alpha = r, so the loaded scale is 1. All modules are zero-padded to one rank, since several servers
take neither a rank nor an alpha per module.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from fedtuners.adapters.base import Adapter, Task
from fedtuners.adapters.low_rank import norm, truncate
from fedtuners.adapters.state import PEFT_PREFIX, by_module

LowRank = tuple[Tensor, Tensor]


def export_lora(
    adapter: Adapter,
    state: Mapping[str, Tensor],
    folder: str | Path,
    *,
    task: Task,
    base_model: str | None = None,
    residuals: Mapping[str, LowRank] | None = None,
    max_rank: int | None = None,
) -> dict[str, float]:
    """Writes an adapter's state, and residuals, as a stock LoRA folder.

    Args:
        adapter: the method that the state is of.
        state: all of its tensors by name (`adapter_state`); a task head is saved along.
        folder: where adapter_config.json and adapter_model.safetensors go.
        task: "causal_lm" or "classification".
        base_model: the base model's name, for the configuration.
        residuals: (L, R) by module path, added to the modules' ΔW.
        max_rank: truncate modules of a higher rank to their best approximation of this one.

    Returns:
        The relative error ‖ΔW − exported‖ / ‖ΔW‖ of each module; 0 unless truncated.

    Raises:
        ValueError: when a residual is of a module that the adapter does not have, or max_rank < 1.
    """
    if max_rank is not None and max_rank < 1:
        raise ValueError(f"max_rank {max_rank}: choose at least 1, or none to export exactly")
    factors = lora_factors(adapter, state, residuals or {})
    kept, errors = _truncated(factors, max_rank)
    rank = max(L.shape[1] for L, _ in kept.values())
    tensors = {f"{PEFT_PREFIX}{name}": value for name, value in _head(adapter, state).items()}
    for module, (L, R) in kept.items():
        tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = pad(R, (0, 0, 0, rank - R.shape[0]))
        tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = pad(L, (0, rank - L.shape[1]))
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(kept),
        task_type=adapter.task_type(task),
        base_model_name_or_path=base_model,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    save_file(contiguous, Path(folder) / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    return errors


def lora_factors(
    adapter: Adapter, state: Mapping[str, Tensor], residuals: Mapping[str, LowRank]
) -> dict[str, LowRank]:
    """(L, R) of every adapted module with L @ R = ΔW plus the module's residual, exactly.

    Raises:
        ValueError: when a residual is of a module that the adapter does not have.
    """
    adapted = {
        module: tensors
        for module, tensors in by_module(state).items()
        if tensors.keys() >= set(adapter.factors)
    }
    foreign = sorted(residuals.keys() - adapted.keys())
    if foreign:
        raise ValueError(f"{foreign[0]} has a residual but no {adapter.name} tensors in the state")
    factors = {}
    for module, tensors in adapted.items():
        L, R = adapter.low_rank(tensors)
        if module in residuals:
            extra_L, extra_R = residuals[module]
            L = torch.cat([L, extra_L.to(L)], dim=1)
            R = torch.cat([R, extra_R.to(R)], dim=0)
        factors[module] = (L, R)
    return factors


def _truncated(
    factors: Mapping[str, LowRank], max_rank: int | None
) -> tuple[dict[str, LowRank], dict[str, float]]:
    """The factors within max_rank, and the relative error of each."""
    kept: dict[str, LowRank] = {}
    errors: dict[str, float] = {}
    for module, (L, R) in factors.items():
        L_kept, R_kept, error = truncate(L, R, max_rank or L.shape[1])
        kept[module] = (L_kept, R_kept)
        errors[module] = error / norm(L, R) if error else 0.0
    return kept, errors


def _head(adapter: Adapter, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are not the adapter's but the task head's."""
    return {
        name: value
        for name, value in state.items()
        if name.rpartition(".")[2] not in adapter.factors
    }
