"""A run folder read back: its configuration, its scores, and its model with base and adapter.

What a verb may be given, a run, a folder with an adapter, or a model, ends here in one object that
can answer as the base and as the tuned model.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from yaml import YAMLError

from fedtuners.adapters import Adapter, State, attach_residual, clear_residual, residuals
from fedtuners.adapters.residual import LEFT, RIGHT
from fedtuners.adapters.state import PEFT_PREFIX
from fedtuners.config import Config, ConfigError, from_json
from fedtuners.tasks import ModelError, Task, make_task, model_path
from fedtuners.tuned import choose_device

Side = Literal["base", "adapter"]
LowRank = tuple[Tensor, Tensor]
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class RunError(ValueError):
    """A run folder that is not there or not whole; its one sentence says which and what to do."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path
    config: Config
    summary: dict[str, Any]

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: one per round and client, and one per round."""
        text = _read(self.path / "metrics.jsonl")
        try:
            lines = [json.loads(line) for line in text.splitlines()]
        except ValueError as error:
            raise RunError(f"{self.path}/metrics.jsonl is damaged: {error}") from error
        if not lines:
            raise RunError(f"{self.path}/metrics.jsonl holds no round: name another run")
        return lines

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The lines of whole rounds, round 0 first."""
        return [line for line in self.lines if "client" not in line]

    def clients(self, round_: int) -> list[dict[str, Any]]:
        """The clients' lines of a round."""
        return [line for line in self.lines if "client" in line and line["round"] == round_]


def read_run(name: str) -> Run:
    """The finished run of that name: a path, a name in the outputs folder, or `latest`.

    Raises:
        RunError: when there is none, it has not finished, or one of its files is damaged.
    """
    outputs = Path(os.environ.get("FEDTUNERS_OUTPUTS", "outputs"))
    found = [p for p in (Path(name).expanduser(), outputs / name) if (p / "config.yaml").is_file()]
    if not found:
        raise RunError(f"{name} is no run folder: give a path, a name in {outputs}, or latest")
    path = found[0].resolve()
    if not (path / "summary.json").is_file():
        raise RunError(f"{path} has no summary.json: the run has not finished")
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
        config = from_json(json.dumps(plain))
        summary = json.loads(_read(path / "summary.json"))
    except (OmegaConfBaseException, YAMLError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{path}: config.yaml or summary.json cannot be read: {reason}") from error
    except ConfigError as error:
        raise RunError(f"{path}/config.yaml: {error}") from error
    return Run(path, config, summary)


def saved_state(adapter: Adapter, folder: Path) -> State:
    """The tensors of a saved adapter by name, as `adapter_state` has them; no model is needed."""
    state: State = {}
    for name, value in _tensors(folder / ADAPTER_WEIGHTS).items():
        parts = name.removeprefix(PEFT_PREFIX).split(".")
        if "base_layer" in parts:  # PEFT saves an adapted output layer's own weight, too
            continue
        if parts[-1] == "weight" and parts[-2] in adapter.factors:
            parts = parts[:-1]  # one module for each factor
        elif parts[-1] in adapter.factors:
            parts = [*parts[:-2], parts[-1]]  # all factors in one module
        state[".".join(parts)] = value
    return state


def saved_residuals(folder: Path) -> dict[str, LowRank]:
    """FedEx-LoRA's (L, R) by module beside a saved adapter; empty for the other methods."""
    path = folder / "residual.safetensors"
    factors = _tensors(path) if path.exists() else {}
    modules = [name.removesuffix(f".{LEFT}") for name in factors if name.endswith(f".{LEFT}")]
    return {name: (factors[f"{name}.{LEFT}"], factors[f"{name}.{RIGHT}"]) for name in modules}


class Model:
    """A loaded model that answers as its base or, where it has an adapter, as the tuned one."""

    def __init__(
        self, config: Config, adapter: Path | None = None, device: str | None = None
    ) -> None:
        self.config = config
        self.task: Task = make_task(config.data, config.data.labels)
        place = choose_device(device or config.device)
        base, self.tokenizer = self.task.load_base(config.model, place, config.seed)
        self.network: Any = base
        self.sides: tuple[Side, ...] = ("base",)
        if adapter is not None:
            self.network = with_adapter(base, adapter, config.model.name)
            attach_residual(self.network, saved_residuals(adapter))
            self.network.eval()
            self.sides = ("base", "adapter")

    @contextmanager
    def side(self, side: Side) -> Iterator[Any]:
        """The network as the base (no adapter, no residual) or as the tuned model."""
        if side == "adapter" or len(self.sides) == 1:
            yield self.network
            return
        beside = residuals(self.network)
        clear_residual(self.network)
        try:
            with self.network.disable_adapter():
                yield self.network
        finally:
            attach_residual(self.network, beside)


def open_model(name: str, otherwise: Config | None, device: str | None = None) -> Model:
    """The model of a run, of a folder with a PEFT adapter, or of a model's folder or hub name.

    Args:
        name: what was given.
        otherwise: the configuration whose data section applies when `name` is no run; None when
            the caller can take a run only.
        device: overrides the configuration's.

    Raises:
        RunError, ModelError: when it is none of these, or an adapter of another base.
    """
    if otherwise is None or is_run(name):
        run = read_run(name)
        return Model(run.config, run.path / "adapter", device)
    folder = Path(name).expanduser()
    if not (folder / ADAPTER_CONFIG).is_file():
        return Model(replace(otherwise, model=replace(otherwise.model, name=name)), None, device)
    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise ModelError(f"{name}/{ADAPTER_CONFIG} does not name its base model")
    return Model(replace(otherwise, model=replace(otherwise.model, name=base)), folder, device)


def is_run(name: str) -> bool:
    """Whether a name is that of a run folder, finished or not."""
    outputs = Path(os.environ.get("FEDTUNERS_OUTPUTS", "outputs"))
    return any((p / "config.yaml").is_file() for p in (Path(name).expanduser(), outputs / name))


def with_adapter(base: Any, folder: Path, name: str) -> PeftModel:
    """The base model `name` with the adapter in a folder on it. Raises RunError, ModelError."""
    if not (folder / ADAPTER_CONFIG).is_file():
        raise RunError(f"{folder} holds no adapter: {ADAPTER_CONFIG} is missing")
    saved = _tensors(folder / ADAPTER_WEIGHTS)
    try:
        model = PeftModel.from_pretrained(base, str(folder))
    except (RuntimeError, ValueError) as error:
        raise foreign(folder, name) from error
    if saved.keys() != get_peft_model_state_dict(model).keys():
        raise foreign(folder, name)  # PEFT itself only warns, and leaves the rest at its start
    return model


def foreign(folder: Path, name: str) -> ModelError:
    """What is said of an adapter in a folder that does not fit the base model `name`."""
    return ModelError(
        f"the adapter in {folder} was made for another base model than {model_path(name)}"
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise RunError(f"{path} is missing: the run has not finished, or was moved in parts")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise RunError(f"{path} is damaged: {error}") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
