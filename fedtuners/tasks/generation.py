"""Greedy generation in batches, and likelihoods of given responses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from fedtuners.tasks.batches import Encoded, by_length, ordered_batches
from fedtuners.tasks.losses import token_losses


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients; every module's own mode comes back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        for module, training in modes.items():
            module.training = training


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: Sequence[int],
    pad: int,
    batch_size: int = 64,
) -> list[list[int]]:
    """Continue each prompt greedily until a token of `stop`, which is not returned.

    Prompts of similar length share a batch, padded on the left; the result is that of one prompt
    at a time, in the order of `prompts`. Sampling settings stored with the model are set aside.
    """
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop),
        pad_token_id=pad,
        use_cache=True,
    )
    responses: list[list[int]] = [[] for _ in prompts]
    with evaluating(model) as device:
        for rows in by_length([len(prompt) for prompt in prompts], batch_size):
            ids, mask = _left_padded([prompts[row] for row in rows], pad)
            out = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=settings,
            )
            for row, tokens in zip(rows, out[:, ids.shape[1] :].tolist(), strict=True):
                responses[row] = _until(tokens, stop)
    return responses


def _left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    length = max(map(len, prompts))
    ids = [[pad] * (length - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _until(tokens: list[int], stop: Sequence[int]) -> list[int]:
    ends = (index for index, token in enumerate(tokens) if token in stop)
    return tokens[: next(ends, len(tokens))]


def log_likelihoods(model: Any, encoded: Encoded, pad: int, batch_size: int = 64) -> list[float]:
    """log p(response | prompt) of each example in nats, summed over its tokens."""
    result = [0.0] * len(encoded)
    with evaluating(model) as device:
        for rows, batch in ordered_batches(encoded, pad, batch_size, device):
            logits = model(**batch.inputs, use_cache=False).logits
            nats, _ = token_losses(logits, batch.labels)
            for row, total in zip(rows, nats.sum(dim=1).tolist(), strict=True):
                result[row] = -total
    return result
