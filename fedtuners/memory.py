"""Peak memory of a training step and of an update estimate, from shapes alone.

The real code runs on fake tensors, which have sizes and no values, while a dispatch mode counts
the storages that live. Kernels are chosen as on a CPU, whose fused attention keeps no matrix of
scores, as a GPU's does. What an allocator and a kernel's own scratch add is not counted there;
`resident` adds what they take on a CPU, as measured.
"""

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from fedtuners.adapters import modules, sketch_range
from fedtuners.config import Config
from fedtuners.tasks import Batch, Task, loss

# Bytes that a process on a CPU holds for each byte of tensors besides the weights, which lie in a
# mapped file: the C library's heap keeps the holes between them. Measured: docs/performance.md.
HEAP = 2.1
FEW = (2, 4)  # layers to run and extrapolate from, for a model of more than twice as many


@dataclass(frozen=True)
class Memory:
    """Bytes on one client. `training` and `estimate` are peaks of all that lives at once."""

    weights: int
    adapter: int
    gradients: int
    optimiser: int
    residual: int
    activations: int
    estimate: int  # the peak of the start, weights and adapter included; 0 without one

    @property
    def training(self) -> int:
        """The peak of a training step."""
        held = self.weights + self.adapter + self.gradients + self.optimiser + self.residual
        return held + self.activations

    @property
    def peak(self) -> int:
        """The most that is needed at any time."""
        return max(self.training, self.estimate)


def resident(memory: Memory, idle: int) -> int:
    """The peak of a client's process on a CPU, from what one takes that holds next to nothing."""
    return idle + memory.weights + round(HEAP * (memory.peak - memory.weights))


class Peak(TorchDispatchMode):
    """Counts the bytes of storages that operations make, while they live, and the most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.live: Any = WeakIdKeyDictionary()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it made."""
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.count, out)
        return out

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        if storage not in self.live:
            size = storage.nbytes()
            self.live[storage] = size
            weakref.finalize(storage, self._gone, size)
            self.now += size
            self.most = max(self.most, self.now)

    def _gone(self, size: int) -> None:
        self.now -= size


def measure(
    build: Callable[[int | None], nn.Module], task: Task, config: Config, layers: int | None
) -> tuple[int, int]:
    """(peak of a training step, peak of the start) in bytes beyond the model itself.

    Args:
        build: the adapted model on the meta device, with so many layers; None: all.
        task: whose loss is taken.
        config: batch sizes, lengths and what the start needs.
        layers: of the model, where it says; peaks are straight lines in it, so a deep model is
            extrapolated from two shallow ones.
    """
    if layers is None or layers <= 2 * FEW[1]:
        return _measured(build(None), task, config)
    few, more = (_measured(build(count), task, config) for count in FEW)
    scale = (layers - FEW[0]) / (FEW[1] - FEW[0])
    training, estimate = (round(a + (b - a) * scale) for a, b in zip(few, more, strict=True))
    return training, estimate


def _measured(model: nn.Module, task: Task, config: Config) -> tuple[int, int]:
    model = copy.deepcopy(model)
    with FakeTensorMode(), Peak() as peak:
        _as_fake(model)
        held = peak.now
        training = _training_peak(model, task, config, peak) - held
        model.zero_grad(set_to_none=True)
        estimate = 0
        if config.start.source == "clients" and needs_estimate(model):
            peak.most = peak.now
            _sketch(model, task, config)
            estimate = peak.most - held
    return training, estimate


def needs_estimate(model: nn.Module) -> bool:
    """Whether the adapter on a model starts from an update estimate."""
    found = getattr(model, "peft_config", {}).get("default")
    return getattr(found, "init", None) == "update"


def _training_peak(model: nn.Module, task: Task, config: Config, peak: Peak) -> int:
    """The most that lives in a step once the optimiser has its moments."""
    train = config.train
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = AdamW(trained, lr=train.learning_rate)
    model.train()
    size = min(train.micro_batch or train.batch_size, train.batch_size)
    parts = 2 if size < train.batch_size else 1  # the second finds the gradients of the first
    for _ in range(2):
        peak.most = peak.now
        for _ in range(parts):
            loss(task, model, _batch(task, size, config.data.max_length)).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    model.eval()
    return peak.most


def _sketch(model: nn.Module, task: Task, config: Config) -> None:
    ranks = [layer.r for layer in model.peft_config.values()]  # type: ignore[operator]
    width = max(ranks) + config.start.oversampling
    size = min(config.start.batch_size, config.start.rows)
    batches = [_batch(task, size, config.data.max_length)]
    names = list(modules(model))

    def summed(network: nn.Module, batch: Batch) -> Tensor:
        return task.per_example_loss(network, batch).sum()

    sketch_range(model, batches, summed, names, width, config.seed)


def _batch(task: Task, size: int, length: int) -> Batch:
    """A batch of full-length examples."""
    ids = torch.ones(size, length, dtype=torch.long)
    labels = ids.clone() if task.kind == "causal_lm" else torch.zeros(size, dtype=torch.long)
    return Batch({"input_ids": ids, "attention_mask": ids.clone()}, labels, (length,) * size)


def _as_fake(model: nn.Module) -> None:
    """Replaces a meta model's tensors by fake ones on the CPU; shared ones stay shared."""
    parameters: dict[int, nn.Parameter] = {}
    buffers: dict[int, Tensor] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                made = torch.empty(p.shape, dtype=p.dtype)
                own = parameters.setdefault(id(p), nn.Parameter(made, p.requires_grad))
                module._parameters[name] = own
        for name, buffer in module._buffers.items():
            if buffer is not None:
                made = torch.empty(buffer.shape, dtype=buffer.dtype)
                module._buffers[name] = buffers.setdefault(id(buffer), made)
