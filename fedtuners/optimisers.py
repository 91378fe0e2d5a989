"""The optimiser of local training: AdamW, with moments in fp32 or, by bitsandbytes, in 8 bits.

8-bit moments (arXiv 2110.02861) are quantised in blocks of 256 numbers; tensors of fewer than 4,096
numbers keep theirs in fp32. A paged optimiser's moments go to the CPU while the GPU is full.
"""

import importlib.util
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from fedtuners.config import ConfigError, TrainConfig

BLOCK, SMALL = 256, 4096


def make_optimiser(trained: Sequence[nn.Parameter], config: TrainConfig) -> Optimizer:
    """AdamW as `train.optimizer` names it, new, over the trained parameters.

    Raises:
        ConfigError: when bitsandbytes, or the GPU that paging needs, is missing.
    """
    kind: Callable[..., Optimizer] = AdamW
    if config.optimizer != "adamw":
        _check(config.optimizer, trained[0].device)
        from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

        kind = AdamW8bit if config.optimizer == "adamw_8bit" else PagedAdamW8bit
    return kind(trained, lr=config.learning_rate, weight_decay=config.weight_decay)


def moment_bytes(tensors: Iterable[Tensor], optimizer: str) -> int:
    """Bytes of both moments of all tensors."""
    return sum(
        2 * tensor.numel() * tensor.element_size()
        if optimizer == "adamw" or tensor.numel() < SMALL
        else 2 * (tensor.numel() + 4 * -(-tensor.numel() // BLOCK))
        for tensor in tensors
    )


def _check(optimizer: str, device: torch.device) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"train.optimizer={optimizer} needs bitsandbytes: pip install 'fedtuners[cuda]', or "
            "choose train.optimizer=adamw"
        )
    if optimizer.startswith("paged") and device.type != "cuda":
        raise ConfigError(
            f"train.optimizer={optimizer} moves memory of a CUDA GPU, and this machine computes on "
            f"device={device}: choose adamw_8bit or adamw"
        )
