"""What a client of a run will hold, before anything is downloaded: its model without values.

The base model is built from its configuration on the meta device, the adapter is put on by the
code that runs put it on, and what trains is read off.
"""

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from fedtuners.adapters import (
    Adapter,
    freeze_all_but,
    modules,
    trainable_names,
)
from fedtuners.adapters.linear import in_out_features
from fedtuners.adapters.state import named_parameters
from fedtuners.config import Config
from fedtuners.memory import Memory, measure
from fedtuners.optimisers import moment_bytes
from fedtuners.tasks import ModelError, Splits, load, make_task, model_path
from fedtuners.tasks.quantisation import largest_weight, saved_bytes
from fedtuners.tasks.readers import READERS

State = dict[str, Tensor]


@dataclass(frozen=True)
class Skeleton:
    """A client's model without values."""

    config: Config
    adapter: Adapter
    base: PretrainedConfig
    model: PeftModel  # on the meta device
    linear_only: bool  # whether only the adapter's linear factor trains

    @property
    def trained(self) -> State:
        """The tensors that train and travel, by name."""
        names = set(trainable_names(self.model))
        return {
            name: p.detach() for name, p in named_parameters(self.model).items() if name in names
        }

    @property
    def frozen(self) -> State:
        """The adapter's other tensors."""
        names = set(trainable_names(self.model))
        found = named_parameters(self.model)
        return {name: p.detach() for name, p in found.items() if name not in names}

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out_features, in_features) of each adapted module."""
        sizes = {path: in_out_features(layer) for path, layer in modules(self.model).items()}
        return {path: (m, n) for path, (n, m) in sizes.items()}

    @property
    def start_rank(self) -> int | None:
        """The rank of an adapter that starts from an update estimate."""
        return max(self.adapter.module_ranks()) if self.adapter.needs_estimate else None

    def memory(self, residual: int = 0) -> Memory:
        """A client's memory by part, with so many bytes of residuals at the end of the run."""
        task = make_task(self.config.data, _labels(self.config))
        build = partial(_again, self.config, self.adapter, self.base, self.linear_only)
        layers = getattr(self.base, "num_hidden_layers", None)
        training, estimate = measure(build, task, self.config, layers)
        trained = bytes_of(self.trained)
        own = trained + bytes_of(self.frozen)
        tensors = {id(t): t for t in [*self.model.parameters(), *self.model.buffers()]}
        weights = sum(t.numel() * t.element_size() for t in tensors.values()) - own
        plain, quantization = _base(self.config, self.base, None), self.config.model.quantization
        weights -= saved_bytes(plain, quantization)
        dense = largest_weight(plain, quantization)
        return Memory(
            weights=weights,
            adapter=own,
            gradients=trained,
            optimiser=moment_bytes(self.trained.values(), self.config.train.optimizer),
            residual=residual,
            activations=max(training - 3 * trained, 0) + dense,
            estimate=weights + own + estimate + dense if estimate else 0,
        )


def skeleton(
    config: Config, adapter: Adapter, base: PretrainedConfig, linear_only: bool
) -> Skeleton:
    """The model of a client, without values.

    Raises:
        ValueError: when the adapter does not fit a layer, naming it.
    """
    model = _again(config, adapter, base, linear_only, None)
    return Skeleton(config, adapter, base, model, linear_only)


def read_base(config: Config) -> PretrainedConfig:
    """The base model's configuration, from its folder or the hub. Raises ModelError."""
    path = model_path(config.model.name)
    try:
        found: PretrainedConfig = AutoConfig.from_pretrained(path, revision=config.model.revision)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model.name={config.model.name}: its config.json is neither in a folder nor to be had "
            "from the hub from here; give a local folder, or plan with --shapes"
        ) from error
    return found


def rows_here(config: Config) -> Splits | None:
    """The rows that are, or by their name should be, on this machine; None for those of the hub.

    Raises:
        DataError: when they are missing or not as the configuration says.
    """
    place = Path(config.data.source).expanduser()
    named = config.data.source.startswith((".", "/", "~")) or place.suffix in READERS
    if named or config.data.source == "demo" or place.exists():
        return load(config.data, config.seed)
    return None


def problems(config: Config, base: PretrainedConfig) -> list[str]:
    """What the base model's configuration alone says against a run, a sentence each."""
    found = []
    context = getattr(base, "max_position_embeddings", None)
    data = config.data
    generates = data.task == "causal_lm" and data.measured not in ("loss", "perplexity", "choice")
    tokens = data.max_length + (data.max_new_tokens if generates else 0)
    if isinstance(context, int) and tokens > context:
        found.append(
            f"{tokens} tokens a sequence are more than the model's context of {context}: lower "
            "data.max_length or data.max_new_tokens"
        )
    headed = any("SequenceClassification" in kind for kind in base.architectures or ())
    labels = len(_labels(config))
    if data.task == "classification" and headed and base.num_labels != labels:
        found.append(
            f"the model's head has {base.num_labels} labels and the data {labels}: use a base "
            "model without a head, or set data.labels to the head's"
        )
    return found


def bytes_of(state: State) -> int:
    """Bytes of a state's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def _base(config: Config, base: PretrainedConfig, layers: int | None) -> PreTrainedModel:
    """The base model on the meta device, with its first `layers` layers or all."""
    shape: Any = copy.deepcopy(base)
    if layers is not None:
        shape.num_hidden_layers = layers
        if getattr(shape, "layer_types", None):
            shape.layer_types = shape.layer_types[:layers]
    kind: Any = AutoModelForCausalLM
    if config.data.task == "classification":
        kind, shape.num_labels = AutoModelForSequenceClassification, len(_labels(config))
    with torch.device("meta"):
        model: PreTrainedModel = kind.from_config(shape, dtype=getattr(torch, config.model.dtype))
    model.requires_grad_(False)
    return model


def _again(
    config: Config, adapter: Adapter, base: PretrainedConfig, linear_only: bool, layers: int | None
) -> PeftModel:
    """The adapted model on the meta device, with its first `layers` layers or all."""
    model = _base(config, base, layers)
    with torch.device("meta"):
        tuned = adapter.attach(model, config.data.task, config.seed)  # type: ignore[arg-type]
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if linear_only:
        freeze_all_but(tuned, adapter.linear_factor)
    return tuned


def _labels(config: Config) -> list[str]:
    """The labels, or two where the rows, not yet there, are to say."""
    return config.data.labels or (["0", "1"] if config.data.task == "classification" else [])
