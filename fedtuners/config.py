"""The typed configuration of one run, and its composition from `conf/` by Hydra.

The server composes once; what it resolved travels to every client as JSON, so nobody composes twice
and nobody drifts. `adapter` and `strategy` name their class by Hydra's `_target_`; every other
section is one of the dataclasses below, which also are the reference of what may be set.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from hydra.utils import get_class
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedtuners.adapters import Adapter
from fedtuners.tasks.batches import steps_per_epoch
from fedtuners.tasks.config import DataConfig, ModelConfig, PartitionConfig


class ConfigError(ValueError):
    """A configuration that cannot run; its one sentence names the key and the fix."""


@dataclass
class TrainConfig:
    """What one client does in one round."""

    steps: int = 20  # optimiser steps
    epochs: int | None = None  # passes over the client's rows; they decide the steps when set
    batch_size: int = 32  # examples per optimiser step
    micro_batch: int | None = None  # examples per forward pass; None: the whole batch at once
    group_by_length: bool = False  # batches of similar lengths: less padding, less mixed batches
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    optimizer: str = "adamw"  # adamw | adamw_8bit | paged_adamw_8bit (both need fedtuners[cuda])
    schedule: str = "constant"  # constant | linear | cosine, over the steps of one round
    warmup: float = 0.0  # fraction of the steps spent rising from 0
    max_grad_norm: float | None = None
    gradient_checkpointing: bool = False

    def resolved(self, rows: int) -> "TrainConfig":
        """With the number of steps that a client of so many rows takes."""
        if self.epochs is None:
            return self
        return replace(self, steps=self.epochs * steps_per_epoch(rows, self.batch_size))


@dataclass
class StartConfig:
    """Where an adapter that starts from an update estimate (LoRA-SB) gets it."""

    source: str = "clients"  # clients: sketches of their gradients | server | public: data below
    rows: int = 128  # examples per party
    batch_size: int = 32
    oversampling: int = 8  # sketch columns beyond the rank
    learning_rate: float = 1e-3  # η of the imagined first step: the scale of R at the start
    data: str | None = None  # source of the rows for `server` and `public`; None: `data.source`
    split: str | None = None  # and its split; None: `data.train_split`


@dataclass
class FederationConfig:
    """Who takes part, and when the server goes on without them."""

    rounds: int = 5
    clients: int = 4  # parts of `data` when the nodes hold none of their own
    fraction: float = 1.0  # of the clients asked in each round
    at_once: int = 100  # clients asked at the same time; more are asked in turn, to save memory
    minimum_replies: int = 2  # fewer good replies than this end the run with an error
    deadline: float = 3600.0  # seconds a round waits for its replies
    minimum_nodes: int = 1  # nodes to wait for before the first round
    wait: float = 300.0  # seconds to wait for them
    patience: int | None = None  # stop after this many rounds without a better metric
    wire_dtype: str | None = None  # bfloat16 halves what trains, and rounds; None: as is


@dataclass
class PrivacyConfig:
    """What a client's answers may tell of one example among its rows; see docs/privacy.md."""

    protects: str = "none"  # none | example: DP-SGD on every client
    epsilon: float | None = 3.0  # the budget ε of a client's rows; None: count it without a limit
    delta: float | None = None  # δ, below one over the client's examples N; None: N^-1.1
    noise_multiplier: float | None = None  # σ; None: what makes all rounds cost `epsilon`
    clip: float = 1.0  # the norm that one example's gradient keeps at most
    accountant: str = "prv"  # prv | rdp | pld
    unit: str | None = None  # a column whose equal values are protected together; None: each row
    secure: bool = False  # every random number from the operating system: slower
    start_noise: float = 1.0  # noise of LoRA-SB's start from clients, in units of the training's

    @property
    def active(self) -> bool:
        """Whether clients train privately."""
        return self.protects != "none"


@dataclass
class EvaluationConfig:
    """Held-out evaluation of the global model by the server."""

    every: int = 1  # rounds between evaluations; the first and last are always evaluated
    batch_size: int = 64


@dataclass
class Config:
    """One run, completely."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    adapter: Any = MISSING
    strategy: Any = MISSING
    aggregation: Any = MISSING
    start: StartConfig = field(default_factory=StartConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    track: Any = field(default_factory=dict)  # where numbers go besides the run folder; {}: nowhere
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda | cuda:1 …
    outputs: str | None = None  # folder of the run folders; None: $FEDTUNERS_OUTPUTS or ./outputs
    resume: str | None = None  # a run folder, or "latest"


ConfigStore.instance().store(name="schema", node=Config)

CHOICES = {
    "train.optimizer": ("adamw", "adamw_8bit", "paged_adamw_8bit"),
    "train.schedule": ("constant", "linear", "cosine"),
    "start.source": ("clients", "server", "public"),
    "federation.wire_dtype": (None, "bfloat16"),
    "privacy.protects": ("none", "example"),
    "privacy.accountant": ("prv", "rdp", "pld"),
}
POSITIVE = (
    "federation.rounds",
    "federation.clients",
    "federation.minimum_replies",
    "federation.minimum_nodes",
    "federation.at_once",
    "federation.deadline",
    "federation.patience",
    "train.steps",
    "train.epochs",
    "train.batch_size",
    "train.micro_batch",
    "train.learning_rate",
    "train.max_grad_norm",
    "start.rows",
    "start.batch_size",
    "start.learning_rate",
    "evaluation.every",
    "evaluation.batch_size",
    "partition.classes",
)
NOT_NEGATIVE = (
    "seed",
    "federation.wait",
    "train.weight_decay",
    "train.warmup",
    "start.oversampling",
    "partition.seed",
)


def compose(overrides: Sequence[str], conf: Path) -> Config:
    """Compose `conf/config.yaml` with Hydra overrides and validate it.

    `model=` and `data=` also take a hub name or a path that is no choice of their group. Raises
    ConfigError with the valid choices for anything mistyped.
    """
    with initialize_config_dir(config_dir=str(conf.resolve()), version_base=None):
        words = [part for word in overrides for part in _named_source(word, conf)]
        if _deals_evenly(overrides, words):
            words = ["partition=iid", *words]
        if len(ways := {word for word in words if word.startswith("aggregation=")}) > 1:
            raise ConfigError(
                f"{' and '.join(sorted(ways))} exclude each other: what a robust rule compares, or "
                "a server clips, is what secure aggregation hides; choose one"
            )
        try:
            composed = hydra_compose("config", overrides=words)
            config: Config = OmegaConf.to_object(composed)  # type: ignore[assignment]
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(error, words, conf)) from error
        except ValueError as error:  # a section's own check of its values
            raise ConfigError(str(error)) from error
    return validate(config)


def validate(config: Config) -> Config:
    """Check the values that types cannot; returns the config it was given."""
    for key, choices in CHOICES.items():
        value = attrgetter(key)(config)
        if value not in choices:
            raise ConfigError(f"{key}={value} is not one of {', '.join(map(str, choices))}")
    _check_numbers(config)
    if not 0 < config.federation.fraction <= 1:
        raise ConfigError(f"federation.fraction={config.federation.fraction} must lie in (0, 1]")
    return config


def _check_numbers(config: Config) -> None:
    """Raise ConfigError for a number at or below where it means nothing; null means a default."""
    for keys, holds, asked in (
        (POSITIVE, lambda number: number > 0, "above 0"),
        (NOT_NEGATIVE, lambda number: number >= 0, "at least 0"),
    ):
        for key in keys:
            number = attrgetter(key)(config)
            if number is not None and not holds(number):  # nor is it "not a number"
                raise ConfigError(f"{key}={number} must be {asked}")


def make_adapter(config: Config) -> Adapter:
    """The adapter method that `config.adapter` names; only classes of fedtuners.adapters.

    A client builds this from what a server sent it, so nothing else may be called.
    """
    settings = dict(config.adapter)
    target = str(settings.pop("_target_", ""))
    found = class_named(target, "fedtuners.adapters.")
    if found is None or not issubclass(found, Adapter) or found is Adapter:
        raise ConfigError(f"adapter._target_={target} is not an adapter of fedtuners.adapters")
    known = {field.name: field.default for field in fields(found)}
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"adapter has no key '{name}'; it has {', '.join(sorted(known))}")
        if isinstance(known[name], int | float) and type(value) not in (int, float):
            raise ConfigError(f"adapter.{name}={value} must be a number")
    return found(**settings)


def class_named(target: str, prefix: str) -> type | None:
    """The class of this dotted name below `prefix`; None if there is none.

    It must be defined there: a module of ours also names what it imports, such as `torch.hub`.
    """
    if not target.startswith(prefix):
        return None
    try:
        found = get_class(target)
    except (ImportError, ValueError):
        return None
    return found if found.__module__.startswith(prefix) else None


def to_json(config: Config) -> str:
    """The config as it travels: compact JSON with sorted keys."""
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def from_json(text: str) -> Config:
    """The inverse of `to_json`, typed and validated again on arrival."""
    merged = OmegaConf.merge(OmegaConf.structured(Config), json.loads(text))
    return validate(OmegaConf.to_object(merged))  # type: ignore[arg-type]


def _named_source(word: str, conf: Path) -> list[str]:
    """`model=org/name` and `data=rows.jsonl` become the group's open choice plus the name."""
    group, _, value = word.partition("=")
    opened = {"model": ("hf", "model.name"), "data": ("custom", "data.source")}
    if group not in opened or value in _options(conf, group):
        return [word]
    if "/" in value or Path(value).expanduser().exists() or Path(value).suffix:
        choice, key = opened[group]
        return [f"{group}={choice}", f"{key}={value!r}"]
    return [word]


def _deals_evenly(overrides: Sequence[str], words: Sequence[str]) -> bool:
    """Whether `data=rows.jsonl` opened a source, whose columns are not known, and no word deals."""
    opened = "data=custom" in words and "data=custom" not in overrides
    return opened and not any(word.startswith("partition=") for word in words)


def _options(conf: Path, group: str) -> list[str]:
    return sorted(path.stem for path in (conf / group).glob("*.yaml"))


def _explain(error: Exception, overrides: Sequence[str], conf: Path) -> str:
    """One sentence for what Hydra or OmegaConf refused, with the valid choices."""
    chosen = []
    for word in overrides:
        group, _, value = word.lstrip("+~").partition("=")
        if (conf / group).is_dir():
            if value not in (choices := _options(conf, group)):
                return f"{word}: {group} has no choice '{value}'; choose from {', '.join(choices)}"
            chosen.append(f"{group}={value}")
    composed = hydra_compose("config", overrides=chosen)
    for word in sorted(overrides, key=lambda word: word.startswith("+")):  # "+" may add a key
        key = word.lstrip("+~").partition("=")[0]
        section, known = _unknown_key(key, composed, conf)
        if known:
            return f"{word}: unknown key '{key}'; {section} has {known}"
    reason = str(error.__cause__ or error).split("\n    full_key: ")
    return " ".join([*reason[0].split(), *(f"({key.split()[0]})" for key in reason[1:])])


def _unknown_key(key: str, composed: DictConfig, conf: Path) -> tuple[str, str]:
    """(section, its keys) when a dotted key is not in the composed groups, else empty."""
    node: Any = composed
    walked: list[str] = []
    for name in key.split("."):
        known = list(node) if isinstance(node, DictConfig) else []
        if name not in known and not (conf / key).is_dir():
            if not walked:
                known = sorted({*known, *(item.name for item in fields(Config))})
            return ".".join(walked) or "the configuration", ", ".join(map(str, known))
        node = node.get(name) if name in known else None
        walked.append(name)
    return "", ""
