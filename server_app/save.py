"""The result as files: the adapter in PEFT's format, and as stock LoRA with everything in it."""

from pathlib import Path

from safetensors.torch import save_file

from fedtuners.adapters import adapter_state, export_lora, residuals
from fedtuners.adapters.residual import LEFT, RIGHT
from fedtuners.tuned import TunedModel


def save_adapter(tuned: TunedModel, folder: Path) -> None:
    """Write `adapter/` (the method's own PEFT type) and `lora/` (loads without this project).

    FedEx-LoRA's residuals are no part of an adapter: beside `adapter/` they lie in
    residual.safetensors; in `lora/` they are part of the factors.
    """
    tuned.model.save_pretrained(str(folder / "adapter"))
    beside = residuals(tuned.model)
    if beside:
        factors = {f"{module}.{LEFT}": L for module, (L, _) in beside.items()}
        factors |= {f"{module}.{RIGHT}": R for module, (_, R) in beside.items()}
        save_file(factors, folder / "adapter" / "residual.safetensors")
    export_lora(
        tuned.adapter,
        adapter_state(tuned.model),
        folder / "lora",
        task=tuned.task.kind,
        base_model=tuned.config.model.name,
        residuals=beside,
    )
