"""A loaded base model with one adapter on it: what server and clients both hold once a process.

Everything a round changes goes through `install`: the trainable tensors, the frozen factors and the
residuals, by name. The base itself is loaded once and never written to.
"""

import os
import time
from collections import defaultdict
from collections.abc import Mapping
from logging import getLogger

import torch
from peft import PeftModel
from torch import Tensor, nn

from fedtuners.adapters import (
    Adapter,
    adapter_state,
    attach_residual,
    clear_residual,
    freeze_all_but,
    load_state,
    modules,
    trainable_names,
)
from fedtuners.adapters.linear import in_out_features
from fedtuners.adapters.residual import LEFT, RIGHT
from fedtuners.config import Config, make_adapter
from fedtuners.tasks import Batch, Encoded, Task, batches, make_task, steps_per_epoch

log = getLogger("flwr")
State = dict[str, Tensor]


class TunedModel:
    """The base model of a run, its tokenizer and its adapter, on one device."""

    def __init__(self, config: Config, linear_only: bool = False) -> None:
        started = time.monotonic()
        self.config = config
        self.device = torch.device(choose_device(config.device))
        self.task: Task = make_task(config.data, config.data.labels)
        base, self.tokenizer = self.task.load_base(config.model, self.device, config.seed)
        log.info(
            "loaded base model %s in process %s (%.1f s)",
            *(config.model.name, os.getpid(), time.monotonic() - started),
        )
        self.adapter: Adapter = make_adapter(config)
        self.model: PeftModel = self.adapter.attach(base, self.task.kind, config.seed)
        self.model.to(self.device).eval()
        if linear_only:
            freeze_all_but(self.model, self.adapter.linear_factor)
        if config.train.gradient_checkpointing:
            base.gradient_checkpointing_enable()
        self.trainable = trainable_names(self.model)
        self.untouched = adapter_state(self.model)
        self.pieces: list[str] = []

    @property
    def pad(self) -> int:
        """The token id that fills short rows of a batch."""
        return int(self.tokenizer.pad_token_id)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out_features, in_features) of every adapted module, by path."""
        sizes = {path: in_out_features(layer) for path, layer in modules(self.model).items()}
        return {path: (m, n) for path, (n, m) in sizes.items()}

    def start_batches(self, encoded: Encoded, client: int) -> list[Batch]:
        """The examples that an update estimate is made from, at most `start.rows` of them."""
        start = self.config.start
        steps = steps_per_epoch(min(start.rows, len(encoded)), start.batch_size)
        key = (self.config.seed, 0, client)
        drawn = batches(encoded, self.pad, start.batch_size, steps, key)
        return [batch.to(self.device) for batch in drawn]

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the examples' losses, whose gradient an update estimate sums."""
        return self.task.per_example_loss(model, batch).sum()

    def state(self) -> State:
        """The trainable tensors by name, copies on the CPU."""
        state = adapter_state(self.model)
        return {name: state[name] for name in self.trainable}

    def frozen(self) -> State:
        """The adapter's tensors that do not train, by name."""
        state = adapter_state(self.model)
        return {name: value for name, value in state.items() if name not in set(self.trainable)}

    def install(self, trainable: Mapping[str, Tensor], pieces: Mapping[str, State]) -> None:
        """Set the trainable tensors, and the pieces (by content hash) when they have changed."""
        load_state(self.model, trainable)
        if list(pieces) != self.pieces:
            self._install_pieces(pieces)
            self.pieces = list(pieces)

    def uninstall(self) -> None:
        """Back to the base model: no residual, and an adapter that changes nothing."""
        clear_residual(self.model)
        load_state(self.model, self.untouched)
        self.pieces = []

    def _install_pieces(self, pieces: Mapping[str, State]) -> None:
        residuals: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        clear_residual(self.model)
        for state in pieces.values():
            load_state(
                self.model,
                {k: v for k, v in state.items() if not k.endswith((f".{LEFT}", f".{RIGHT}"))},
            )
            for name in state:
                if name.endswith(f".{LEFT}"):
                    module = name.removesuffix(f".{LEFT}")
                    residuals[module].append((state[name], state[f"{module}.{RIGHT}"]))
        attach_residual(
            self.model,
            {
                module: (torch.cat([L for L, _ in terms], 1), torch.cat([R for _, R in terms], 0))
                for module, terms in residuals.items()
            },
        )


def choose_device(name: str) -> str:
    """`auto` is the GPU when there is one. ValueError for a GPU that is absent, and no device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(name)
    except RuntimeError:
        raise ValueError(f"device={name}: choose auto, cpu, cuda, or one GPU as cuda:1") from None
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name}, but this machine has no CUDA GPU: choose device=cpu")
    return name
