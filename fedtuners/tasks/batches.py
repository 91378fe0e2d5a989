"""Encoded examples, their batches, and the order in which a client sees them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

IGNORED = -100  # the label of a token that carries no loss


class Encoding(TypedDict):
    """One example: token ids, and the token labels or the class index."""

    input_ids: list[int]
    attention_mask: list[int]
    token_type_ids: NotRequired[list[int]]
    labels: list[int] | int


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples, and how many had to be shortened to `max_length`."""

    items: tuple[Encoding, ...]
    shortened_prompts: int = 0
    shortened_responses: int = 0

    def __len__(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(item["input_ids"]) for item in self.items]


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right to one length.

    inputs: what the model's forward takes, `input_ids`, `attention_mask` (batch, length), int64.
    labels: (batch, length) of token ids and -100 for a causal LM, (batch,) of class indices for
    classification. lengths: tokens of each example, padding not counted.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    lengths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Tokens in the batch, padding not counted."""
        return sum(self.lengths)

    def to(self, device: str | torch.device) -> "Batch":
        """The batch on a device."""
        inputs = {key: value.to(device) for key, value in self.inputs.items()}
        return Batch(inputs, self.labels.to(device), self.lengths)

    def split(self, size: int | None) -> list["Batch"]:
        """Micro-batches of at most `size` examples, the longest first; None: the whole batch.

        Examples of similar length share a part, which is cut to its longest: the same examples and
        labels with less padding.
        """
        if size is None or size >= len(self):
            return [self]
        return [self._part(rows) for rows in by_length(self.lengths, size)]

    def _part(self, rows: list[int]) -> "Batch":
        lengths = tuple(self.lengths[row] for row in rows)
        longest = max(lengths)
        inputs = {key: value[rows, :longest] for key, value in self.inputs.items()}
        labels = self.labels[rows] if self.labels.ndim == 1 else self.labels[rows, :longest]
        return Batch(inputs, labels, lengths)


def collate(items: Sequence[Encoding], pad: int) -> Batch:
    """Pad on the right to the longest of `items`; `pad` is the tokeniser's padding token."""
    fills = {"input_ids": pad, "labels": IGNORED}
    columns: dict[str, list[Any]] = {key: [item.get(key) for item in items] for key in items[0]}
    tensors = {key: _stacked(values, fills.get(key, 0)) for key, values in columns.items()}
    labels = tensors.pop("labels")
    return Batch(tensors, labels, tuple(len(item["input_ids"]) for item in items))


def _stacked(values: list[Any], fill: int) -> Tensor:
    if isinstance(values[0], int):
        return torch.tensor(values)
    length = max(map(len, values))
    return torch.tensor([value + [fill] * (length - len(value)) for value in values])


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Batches that show every row once; the last one may be smaller."""
    return -(-rows // batch_size)


def batches(
    encoded: Encoded,
    pad: int,
    batch_size: int,
    steps: int,
    key: Sequence[int],
    group_by_length: bool = False,
    device: str | torch.device = "cpu",
) -> Iterator[Batch]:
    """Exactly `steps` batches, epoch after epoch, each epoch in an order of its own.

    Parameters
    ----------
    encoded : Encoded
    pad : int
        The tokeniser's padding token.
    key : sequence of int
        (seed, round, client), none negative: equal keys give equal batches, in any process.
    group_by_length : bool
        Batch rows of similar length, so that less is padding.

    Raises
    ------
    ValueError
        When there is no row to draw.
    """
    if not len(encoded):
        raise ValueError("a client without rows cannot train; lower federation.clients")
    taken, epoch = 0, 0
    while taken < steps:
        order = epoch_order(encoded.lengths, batch_size, [*key, epoch], group_by_length)
        for rows in order[: steps - taken]:
            yield collate([encoded.items[row] for row in rows], pad).to(device)
        taken, epoch = taken + len(order), epoch + 1


def epoch_order(
    lengths: Sequence[int], batch_size: int, key: Sequence[int], group_by_length: bool = False
) -> list[list[int]]:
    """The batches of one epoch as row indices, a pure function of `key`.

    `group_by_length` sorts within stretches of 32 batches and then shuffles the batches.
    """
    draw = np.random.default_rng(list(key))
    order = draw.permutation(len(lengths)).tolist()
    if not group_by_length:
        return _chunks(order, batch_size)
    stretches = _chunks(order, 32 * batch_size)
    order = [row for stretch in stretches for row in sorted(stretch, key=lambda row: lengths[row])]
    batches = _chunks(order, batch_size)
    return [batches[i] for i in draw.permutation(len(batches))]


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, the longest first: what fits once always fits."""
    return _chunks(sorted(range(len(lengths)), key=lambda index: -lengths[index]), batch_size)


def ordered_batches(
    encoded: Encoded, pad: int, batch_size: int, device: str | torch.device
) -> Iterator[tuple[list[int], Batch]]:
    """Every example once, for evaluation: (indices into `encoded`, their batch)."""
    for rows in by_length(encoded.lengths, batch_size):
        yield rows, collate([encoded.items[row] for row in rows], pad).to(device)


def _chunks(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]
