"""Losses with the example as their unit.

Each example's loss depends on that example alone, and a batch's loss is the mean over its examples.
A mean over a batch's tokens, as transformers computes it, weighs an example by the lengths of its
neighbours: it changes with how rows are batched, and it breaks the sensitivity bound of DP-SGD.
"""

from torch import Tensor
from torch.nn.functional import cross_entropy

from fedtuners.tasks.batches import IGNORED


def token_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Next-token cross entropies, and which of them count.

    `logits` (batch, length, vocabulary) and `labels` (batch, length), -100 where no loss is wanted,
    give two tensors (batch, length - 1): nats in at least fp32, zero where `labels` are -100; and
    a mask.
    """
    shifted = labels[:, 1:]
    scores = _at_least_fp32(logits[:, :-1]).transpose(1, 2)
    nats = cross_entropy(scores, shifted, ignore_index=IGNORED, reduction="none")
    return nats, shifted != IGNORED


def sequence_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean nats per counted token of each sequence, (batch,); 0 for one without such a token."""
    nats, counted = token_losses(logits, labels)
    return nats.sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each example, (batch,), from `logits` (batch, classes)."""
    return cross_entropy(_at_least_fp32(logits), labels, reduction="none")


def _at_least_fp32(logits: Tensor) -> Tensor:
    return logits if logits.dtype.itemsize >= 4 else logits.float()
