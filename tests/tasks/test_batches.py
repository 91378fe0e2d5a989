"""A client's batches: a pure function of (seed, round, client), each row once an epoch."""

from typing import cast

import pytest
import torch

from fedtuners.tasks import Encoded, batches, collate, steps_per_epoch
from fedtuners.tasks.batches import Encoding, by_length, epoch_order


def encoded(lengths: list[int]) -> Encoded:
    items = [
        {"input_ids": [i + 1] * n, "attention_mask": [1] * n, "labels": [-100] + [i + 1] * (n - 1)}
        for i, n in enumerate(lengths)
    ]
    return Encoded(tuple(cast(list[Encoding], items)))


ROWS = encoded([3, 7, 2, 5, 4, 9, 6])


def firsts(batch_size: int, steps: int, key: tuple[int, ...], **options: bool) -> list[list[int]]:
    drawn = batches(ROWS, 0, batch_size, steps, key, **options)
    return [batch.inputs["input_ids"][:, 0].tolist() for batch in drawn]


def test_padding_is_on_the_right_and_carries_no_loss() -> None:
    batch = collate(ROWS.items[:3], pad=99)

    assert batch.inputs["input_ids"][2].tolist() == [3, 3] + [99] * 5
    assert batch.inputs["attention_mask"].sum(dim=1).tolist() == [3, 7, 2]
    assert batch.labels[2].tolist() == [-100, 3] + [-100] * 5
    assert (len(batch), batch.tokens) == (3, 12)


def test_an_epoch_shows_every_row_once() -> None:
    for grouped in (False, True):
        drawn = firsts(3, steps_per_epoch(7, 3), (0, 1, 2), group_by_length=grouped)
        assert sorted(row for batch in drawn for row in batch) == list(range(1, 8))


def test_exactly_so_many_steps_and_every_epoch_anew() -> None:
    drawn = firsts(7, 5, (0, 0, 0))

    assert [len(batch) for batch in drawn] == [7] * 5
    assert len({tuple(batch) for batch in drawn}) == 5
    assert firsts(3, 0, (0, 0, 0)) == []
    assert [len(batch) for batch in firsts(100, 2, (0, 0, 0))] == [7, 7]


def test_seed_round_and_client_each_decide_the_order() -> None:
    assert firsts(2, 6, (3, 1, 4)) == firsts(2, 6, (3, 1, 4))
    orders = [firsts(2, 6, key) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert all(orders.count(order) == 1 for order in orders)


def test_grouping_by_length_saves_padding() -> None:
    lengths = [1 + i * 37 % 50 for i in range(64)]

    def padded(group_by_length: bool) -> int:
        order = epoch_order(lengths, 8, (0,), group_by_length)
        return sum(len(rows) * max(lengths[row] for row in rows) for rows in order)

    assert padded(True) < 0.75 * padded(False)


def test_evaluation_starts_with_the_longest() -> None:
    assert by_length([3, 9, 5], 2) == [[1, 2], [0]]


def test_micro_batches_are_the_batch_in_parts() -> None:
    batch = collate(ROWS.items[:5], pad=0)

    parts = batch.split(2)

    assert [part.lengths for part in parts] == [(7, 5), (4, 3), (2,)]
    assert [part.inputs["input_ids"].shape[1] for part in parts] == [7, 4, 2]
    for part in parts:
        for row, length in enumerate(part.lengths):
            original = batch.lengths.index(length)
            kept = part.inputs["input_ids"].shape[1]
            assert torch.equal(part.labels[row], batch.labels[original, :kept])
            mask = part.inputs["attention_mask"][row]
            assert torch.equal(mask, batch.inputs["attention_mask"][original, :kept])
            assert mask.sum() == length
    assert batch.split(None) == batch.split(5) == [batch]


def test_a_client_without_rows_is_told() -> None:
    with pytest.raises(ValueError, match="without rows cannot train"):
        next(batches(Encoded(()), 0, 2, 1, (0, 0, 0)))
