"""Text to a run's model and its answer back, as the run's own task asks and answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fedtuners.results import Model, Side
from fedtuners.tasks import DataConfig
from fedtuners.tasks.encoding import encode_prompts, stop_ids
from fedtuners.tasks.formats import Example, columns, fill
from fedtuners.tasks.generation import evaluating


class PromptError(ValueError):
    """A text that does not fill the run's prompt; its one sentence says what is missing."""


def needed(data: DataConfig) -> list[str]:
    """The columns that the user's words must fill."""
    if data.task == "classification":
        return list(data.text)
    return [] if data.messages is not None else list(dict.fromkeys(columns(data.prompt)))


def fields(words: Sequence[str], data: DataConfig) -> dict[str, str]:
    """`column=text` words, or one text for the only column, by column.

    Raises:
        PromptError: when a column is missing or unknown.
    """
    wanted = needed(data) or ["prompt"]
    if not any(word.strip() for word in words):
        raise PromptError("the text is empty: write what the model is to answer, in quotes")
    if len(words) == len(wanted) == 1 and not words[0].startswith(f"{wanted[0]}="):
        return {wanted[0]: words[0]}
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if len(given) != len(words) or given.keys() - {*wanted, "input"} or set(wanted) - given.keys():
        raise PromptError(f"give {' '.join(f'{name}=…' for name in wanted)}, each in quotes")
    return given


def example(
    given: Mapping[str, str], data: DataConfig, history: Sequence[tuple[str, str]] = ()
) -> Example:
    """The user's words as the run's prompt, without a response."""
    if data.messages is not None or ("prompt" in given and not columns(data.prompt)):
        return Example(given["prompt"], "", tuple(history))
    with_input = data.prompts_with_input and given.get("input")
    template = data.prompt_with_input if with_input else data.prompt
    return Example(fill(template, given), "", tuple(history))


def generate(
    model: Model,
    side: Side,
    asked: Example,
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    streamer: Any = None,
) -> str:
    """The answer of one side, sent to `streamer` as it comes.

    Args:
        temperature: 0 takes the likeliest token each time.
    """
    data, tokenizer = model.config.data, model.tokenizer
    (prompt,) = encode_prompts([asked], tokenizer, data.max_length, data.chat)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    with model.side(side) as network, evaluating(network) as device:
        ids = torch.tensor([prompt], device=device)
        out = network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens or data.max_new_tokens,
            eos_token_id=stop_ids(tokenizer, data.chat),
            pad_token_id=tokenizer.pad_token_id,
            streamer=streamer,
            **({"do_sample": False} | sampling),
        )
    return str(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)).strip()


def classify(model: Model, side: Side, given: Mapping[str, str]) -> list[tuple[str, float]]:
    """(label, probability) of a text or a pair of texts, the likeliest first."""
    data, tokenizer = model.config.data, model.tokenizer
    texts = [[given[name]] for name in data.text]
    with model.side(side) as network, evaluating(network) as device:
        inputs = tokenizer(
            *texts, truncation="longest_first", max_length=data.max_length, return_tensors="pt"
        ).to(device)
        chances = network(**inputs).logits[0].float().softmax(-1).tolist()
    return sorted(zip(data.labels, chances, strict=True), key=lambda pair: -pair[1])
