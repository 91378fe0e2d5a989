"""A run's result as files that load without this project: a stock LoRA, or a merged model.

Each is written beside its destination first and moved there whole, so that a full disk or a bad
rank leaves nothing behind and nothing changed.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fedtuners.adapters import Adapter, State, export_lora
from fedtuners.adapters.linear import dequantise_into
from fedtuners.adapters.state import named_parameters
from fedtuners.config import make_adapter
from fedtuners.planning import read_base, skeleton
from fedtuners.results import Run, foreign, saved_residuals, saved_state, with_adapter
from fedtuners.tasks import make_task, model_path
from fedtuners.tasks.generation import evaluating
from fedtuners.tuned import choose_device


def to_lora(run: Run, out: Path, max_rank: int | None = None) -> dict[str, float]:
    """Write the run's adapter, residuals included, as one stock PEFT LoRA; no model is loaded.

    Returns:
        ‖ΔW − exported‖ / ‖ΔW‖ of each module: 0 unless max_rank truncates.

    Raises:
        ValueError: when `out` is there already or the rank is below 1.
        ModelError: when the base is at hand and the adapter is not for it.
    """
    adapter = make_adapter(run.config)
    state = saved_state(adapter, run.path / "adapter")
    _check_base(run, adapter, state)
    with written_whole(out) as folder:
        return export_lora(
            adapter,
            state,
            folder,
            task=run.config.data.task,  # type: ignore[arg-type]
            base_model=model_path(run.config.model.name),
            residuals=saved_residuals(run.path / "adapter"),
            max_rank=max_rank,
        )


def to_merged(run: Run, out: Path, device: str | None = None) -> float:
    """Write base and adapter as one Hugging Face model, with its tokeniser.

    Adapter and residuals are first one LoRA, so that each weight is rounded to its dtype once. A
    base that was quantised is merged into with the weights that training saw, in its dtype.

    Returns:
        The largest difference of a logit, before and after merging, on a short probe.
    """
    base, tokenizer = _dense_base(run, choose_device(device or run.config.device))
    with written_whole(out) as folder, tempfile.TemporaryDirectory() as scratch:
        to_lora(run, Path(scratch) / "lora")
        tuned = with_adapter(base, Path(scratch) / "lora", run.config.model.name).eval()
        before = _probe(tuned, tokenizer)
        merged: Any = tuned.merge_and_unload()
        difference = float((before - _probe(merged, tokenizer)).abs().max())
        merged.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    return difference


def _check_base(run: Run, adapter: Adapter, state: State) -> None:
    """Names and shapes of the adapter's tensors, beside those of the base, where that is here."""
    if not Path(model_path(run.config.model.name)).is_dir():
        return
    model = skeleton(run.config, adapter, read_base(run.config), linear_only=False).model
    fitting = {name: tensor.shape for name, tensor in named_parameters(model).items()}
    if {name: tensor.shape for name, tensor in state.items()} != fitting:
        raise foreign(run.path / "adapter", run.config.model.name)


def _dense_base(run: Run, device: str) -> tuple[Any, Any]:
    """The run's base and tokeniser; one that was quantised, with its weights dequantised."""
    model, task = run.config.model, make_task(run.config.data, run.config.data.labels)
    plain = replace(model, quantization=None)
    base, tokenizer = task.load_base(plain, device, run.config.seed)
    if model.quantization is not None:
        dequantise_into(base, task.load_base(model, device, run.config.seed)[0])
    return base, tokenizer


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A new folder to write into, which becomes `out` when all went well and is gone otherwise.

    Raises:
        ValueError: when `out` is there already.
        OSError: when the disk does not take it.
    """
    if out.exists():
        raise ValueError(f"{out} is there already: name another folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield part
        part.chmod(0o755)
        os.rename(part, out)
    except SafetensorError as error:
        raise OSError(f"{out} could not be written ({error}); make room there") from error
    except OSError as error:
        error.filename = str(out)
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _probe(model: Any, tokenizer: Any) -> torch.Tensor:
    """Logits on the first tokens of the vocabulary, any of which a model can read."""
    with evaluating(model) as device:
        ids = torch.arange(min(32, len(tokenizer)), device=device)[None]
        logits: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits.float()
