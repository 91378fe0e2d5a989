"""Each example's loss is its own: batching and padding do not change it."""

from copy import deepcopy
from typing import Any

import pytest
import torch

from fedtuners.tasks import Classification, DataConfig, collate, loss, make_task
from fedtuners.tasks.batches import Batch
from fedtuners.tasks.losses import sequence_loss

ROWS = [
    {"instruction": "short", "output": "a longer response"},
    {"instruction": "a very much longer prompt than the others", "output": "no"},
    {"instruction": "x", "output": "middling"},
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def token_mean(model: Any, batch: Batch) -> torch.Tensor:
    """The known wrong loss: one mean over all of a batch's tokens."""
    return model(**batch.inputs, labels=batch.labels).loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_padded_batch_has_the_losses_of_one_at_a_time(
    model: Any, tokenizer: Any, dtype: torch.dtype
) -> None:
    task = make_task(DataConfig())
    items = task.encode(ROWS, tokenizer).items
    model = deepcopy(model).to(dtype)

    together = task.per_example_loss(model, collate(items, tokenizer.pad_token_id))
    alone = [task.per_example_loss(model, collate([item], 2)) for item in items]

    assert together.shape == (3,)
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=TOLERANCE[dtype])


def test_one_sequence_has_the_loss_that_transformers_gives_it(model: Any, tokenizer: Any) -> None:
    task = make_task(DataConfig())
    batch = collate(task.encode(ROWS[:1], tokenizer).items, tokenizer.pad_token_id)

    ours, theirs = task.per_example_loss(model, batch), token_mean(model, batch)

    torch.testing.assert_close(ours[0], theirs.to(ours.dtype), rtol=1e-6, atol=0)


def test_the_token_mean_of_a_batch_depends_on_the_neighbours(model: Any, tokenizer: Any) -> None:
    task = make_task(DataConfig())
    items = task.encode(ROWS, tokenizer).items
    whole = collate(items, tokenizer.pad_token_id)
    each = [collate([item], tokenizer.pad_token_id) for item in items]

    mean_of_each = torch.stack([loss(task, model, one) for one in each]).mean()

    torch.testing.assert_close(loss(task, model, whole), mean_of_each, rtol=0, atol=1e-12)
    assert (token_mean(model, whole) - mean_of_each).abs() > 1e-3 * mean_of_each


def test_micro_batches_give_the_gradient_of_the_whole(model: Any, tokenizer: Any) -> None:
    task = make_task(DataConfig())
    batch = collate(task.encode(ROWS, tokenizer).items, tokenizer.pad_token_id)
    weight = model.lm_head.weight

    whole = torch.autograd.grad(loss(task, model, batch), weight)[0]
    parts = [task.per_example_loss(model, part).sum() / len(batch) for part in batch.split(2)]
    summed = torch.autograd.grad(torch.stack(parts).sum(), weight)[0]

    torch.testing.assert_close(summed, whole, rtol=0, atol=1e-12)


def test_the_prompt_does_not_contribute() -> None:
    labels = torch.tensor([[-100, -100, 3, 1]])
    logits = torch.randn(1, 4, 5, dtype=torch.float64, requires_grad=True)

    sequence_loss(logits, labels).sum().backward()

    assert logits.grad is not None
    assert logits.grad.abs().sum(dim=-1)[0].gt(0).tolist() == [False, True, True, False]


def test_a_sequence_without_a_response_costs_nothing() -> None:
    assert sequence_loss(torch.randn(1, 3, 5), torch.full((1, 3), -100)).tolist() == [0.0]


def test_half_precision_is_summed_in_single() -> None:
    logits = torch.randn(2, 8, 50, dtype=torch.bfloat16)

    assert sequence_loss(logits, torch.ones(2, 8, dtype=torch.long)).dtype == torch.float32


def test_classes_are_padded_without_effect(classifier: Any, tokenizer: Any) -> None:
    task = Classification(DataConfig(task="classification"), ("a", "b", "c"))
    rows = [{"text": "short", "label": "a"}, {"text": "rather longer text", "label": "c"}]
    items = task.encode(rows, tokenizer).items

    together = task.per_example_loss(classifier, collate(items, tokenizer.pad_token_id))
    alone = [task.per_example_loss(classifier, collate([item], 2)) for item in items]

    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)
