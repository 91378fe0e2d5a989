"""Poisson sampling: every protected unit joins a step by a coin toss of its own.

Accountants that assume Poisson sampling say nothing true of shuffled batches. The size of a draw
varies, and may be zero: an empty draw is a step of noise alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedtuners.privacy.accounting import PrivacyError
from fedtuners.privacy.randomness import Randomness
from fedtuners.tasks import Batch, Encoded, collate

Units = tuple[tuple[int, ...], ...]
"""The rows of each protected unit, as indices into the encoded examples."""


@dataclass(frozen=True)
class Part:
    """Examples for one forward pass, with all the drawn rows of each unit among them.

    owners: (rows,) the unit that each row belongs to, numbered 0 … units − 1 within the part.
    """

    batch: Batch
    owners: Tensor
    units: int

    @classmethod
    def of(cls, batch: Batch) -> "Part":
        """A batch whose every row is a unit."""
        return cls(batch, torch.arange(len(batch)), len(batch))


Draw = list[Part]
"""One logical step, in parts that fit into memory; empty when nobody was drawn."""


def units_of(rows: Sequence[Mapping[str, object]], column: str | None) -> Units:
    """What is protected together: rows with one value of a column, a user say; None: each row.

    Each row by itself is example-level privacy, sequence-level for a language model.

    Raises
    ------
    PrivacyError
        When a row has no such column.
    """
    if column is None:
        return tuple((row,) for row in range(len(rows)))
    grouped: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if column not in row:
            raise PrivacyError(f"privacy.unit={column} is no column of the rows; null: each row")
        grouped.setdefault(str(row[column]), []).append(index)
    return tuple(tuple(grouped[value]) for value in sorted(grouped))


def poisson_draws(
    encoded: Encoded,
    units: Units,
    pad: int,
    rate: float,
    steps: int,
    part_rows: int,
    randomness: Randomness,
) -> Iterator[Draw]:
    """Exactly `steps` draws, each unit in each with probability `rate`.

    Parameters
    ----------
    encoded : Encoded
    units : Units
    pad : int
        The tokeniser's padding token.
    rate : float
        q, in (0, 1].
    part_rows : int
        Rows of one forward pass at most. Of a unit with more rows, as many are drawn anew each
        time.
    randomness : Randomness
        The secret source of the coin tosses.
    """
    for _ in range(steps):
        drawn = torch.nonzero(randomness.uniform(len(units)) < rate).flatten().tolist()
        chosen = [_at_most(units[unit], part_rows, randomness) for unit in drawn]
        chosen.sort(key=lambda rows: -max(len(encoded.items[row]["input_ids"]) for row in rows))
        yield [_part(encoded, group, pad) for group in _packed(chosen, part_rows)]


def _at_most(rows: tuple[int, ...], count: int, randomness: Randomness) -> tuple[int, ...]:
    if len(rows) <= count:
        return rows
    order = randomness.uniform(len(rows)).argsort()[:count].tolist()
    return tuple(rows[index] for index in order)


def _packed(chosen: list[tuple[int, ...]], part_rows: int) -> Iterator[list[tuple[int, ...]]]:
    """Whole units in groups of at most `part_rows` rows."""
    group: list[tuple[int, ...]] = []
    for rows in chosen:
        if group and sum(map(len, group)) + len(rows) > part_rows:
            yield group
            group = []
        group.append(rows)
    if group:
        yield group


def _part(encoded: Encoded, group: list[tuple[int, ...]], pad: int) -> Part:
    batch = collate([encoded.items[row] for rows in group for row in rows], pad)
    owners = [unit for unit, rows in enumerate(group) for _ in rows]
    return Part(batch, torch.tensor(owners), len(group))
