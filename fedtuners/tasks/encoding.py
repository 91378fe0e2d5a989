"""Examples to token ids, once per process and content.

A prompt and its response are tokenised apart, so a response never merges into its prompt and the
prompt at generation is token for token the one of training. The loss is on the response alone.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from fedtuners.tasks.batches import IGNORED, Encoded, Encoding
from fedtuners.tasks.formats import Example, Labelled

log = logging.getLogger(__name__)

REMEMBERED = 256  # encoded row sets per tokeniser: the clients one worker serves, and the test rows
Made = TypeVar("Made")
_encoded: WeakKeyDictionary[Any, OrderedDict[bytes, Any]] = WeakKeyDictionary()


def once(tokenizer: Any, content: object, build: Callable[[], Made]) -> Made:
    """`build()`, or what it gave earlier for the same tokeniser and content."""
    kept = _encoded.setdefault(tokenizer, OrderedDict())
    key = blake2b(repr(content).encode(), digest_size=16).digest()
    if key not in kept:
        kept[key] = build()
    kept.move_to_end(key)
    if len(kept) > REMEMBERED:
        kept.popitem(last=False)
    return cast(Made, kept[key])


def encode_instructions(
    examples: Sequence[Example], tokenizer: Any, max_length: int, chat: bool
) -> Encoded:
    """Prompt and response, with labels of -100 on the prompt.

    An example longer than `max_length` tokens loses the start of its prompt; only when the
    response alone is too long is its end cut, end-of-sequence token included. Both are counted,
    and a warning says how many.
    """
    return once(
        tokenizer,
        ("instructions", max_length, chat, examples),
        lambda: _encode_instructions(examples, tokenizer, max_length, chat),
    )


def _encode_instructions(
    examples: Sequence[Example], tokenizer: Any, max_length: int, chat: bool
) -> Encoded:
    rendered = [_render(example, tokenizer, chat) for example in examples]
    prompts = _ids([prompt for prompt, _ in rendered], tokenizer)
    responses = _continuations([response for _, response in rendered], tokenizer)
    start = start_ids(tokenizer, chat)
    special = set(tokenizer.all_special_ids)
    items: list[Encoding] = []
    prompts_cut = responses_cut = 0
    for prompt, response in zip(prompts, responses, strict=True):
        if not response or response[-1] not in special:
            response = [*response, tokenizer.eos_token_id]
        fitting = response[: max_length - len(start)]
        kept = fit_prompt(prompt, start, max_length - len(fitting))
        prompts_cut += len(kept) < len(start) + len(prompt)
        responses_cut += len(fitting) < len(response)
        items.append(
            {
                "input_ids": kept + fitting,
                "attention_mask": [1] * (len(kept) + len(fitting)),
                "labels": [IGNORED] * len(kept) + fitting,
            }
        )
    _warn_of_cuts(len(items), prompts_cut, responses_cut, max_length)
    return Encoded(tuple(items), prompts_cut, responses_cut)


def encode_prompts(
    examples: Sequence[Example], tokenizer: Any, max_length: int, chat: bool
) -> list[list[int]]:
    """The prompts alone, as generation continues them.

    Too long ones lose their start, and a warning says how many.
    """
    texts = [_render_prompt(example, tokenizer, chat) for example in examples]
    start = start_ids(tokenizer, chat)
    return once(
        tokenizer,
        ("prompts", max_length, start, texts),
        lambda: _encode_prompts(texts, tokenizer, max_length, start),
    )


def _encode_prompts(
    texts: list[str], tokenizer: Any, max_length: int, start: list[int]
) -> list[list[int]]:
    prompts = _ids(texts, tokenizer)
    fitting = [fit_prompt(prompt, start, max_length) for prompt in prompts]
    cut = sum(len(start) + len(prompt) > max_length for prompt in prompts)
    _warn_of_cuts(len(prompts), cut, 0, max_length)
    return [prompt or [tokenizer.eos_token_id] for prompt in fitting]  # a model needs one token


def encode_labelled(examples: Sequence[Labelled], tokenizer: Any, max_length: int) -> Encoded:
    """Texts, or pairs of texts, with a class index; a pair is cut at its longer text."""
    return once(
        tokenizer,
        ("labelled", max_length, examples),
        lambda: _encode_labelled(examples, tokenizer, max_length),
    )


def _encode_labelled(examples: Sequence[Labelled], tokenizer: Any, max_length: int) -> Encoded:
    columns = [list(texts) for texts in zip(*(example.texts for example in examples), strict=True)]
    whole = tokenizer(*columns, verbose=False)
    cut = tokenizer(*columns, truncation="longest_first", max_length=max_length)
    items = [
        cast(Encoding, {**{key: cut[key][i] for key in cut}, "labels": example.label})
        for i, example in enumerate(examples)
    ]
    shortened = sum(len(ids) > max_length for ids in whole["input_ids"])
    _warn_of_cuts(len(items), shortened, 0, max_length)
    return Encoded(tuple(items), shortened)


def fit_prompt(prompt: list[int], start: list[int], room: int) -> list[int]:
    """`start` and as much of the end of `prompt` as `room` tokens hold."""
    left = max(0, room - len(start))
    return start + prompt[max(0, len(prompt) - left) :]


def start_ids(tokenizer: Any, chat: bool) -> list[int]:
    """The token before every prompt, if the tokeniser sets one; chat templates write their own."""
    if chat or tokenizer.bos_token_id is None:
        return []
    added = tokenizer("").input_ids
    return [tokenizer.bos_token_id] if added[:1] == [tokenizer.bos_token_id] else []


def stop_ids(tokenizer: Any, chat: bool) -> list[int]:
    """The tokens that end a response: end of sequence, and in a chat the end of a turn."""
    stops = [tokenizer.eos_token_id]
    if chat:
        _, response = _render(Example("?", "!"), tokenizer, chat)
        ids = tokenizer(response, add_special_tokens=False).input_ids
        stops += [i for i in ids if i in set(tokenizer.all_special_ids)][:1]
    return sorted(set(stops))


def _ids(texts: list[str], tokenizer: Any) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []


def _continuations(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Ids of texts that follow others: without the space that some put before a text's start."""
    before = _ids(["\n"], tokenizer)[0]
    after = _ids(["\n" + text for text in texts], tokenizer)
    alone = _ids(texts, tokenizer)
    return [
        ids[len(before) :] if ids[: len(before)] == before else plain
        for ids, plain in zip(after, alone, strict=True)
    ]


def _render(example: Example, tokenizer: Any, chat: bool) -> tuple[str, str]:
    """(prompt, response) as text; the chat template's closing of the turn is in the response."""
    prompt = _render_prompt(example, tokenizer, chat)
    if not chat:
        return prompt, example.response
    turns = [*_turns(example), {"role": "assistant", "content": example.response}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    if not whole.startswith(prompt):
        raise ValueError(
            "the tokeniser's chat template renders an answered turn unlike an open one; "
            "set data.chat=false and write the format into data.prompt"
        )
    return prompt, whole[len(prompt) :].rstrip("\n")


def _render_prompt(example: Example, tokenizer: Any, chat: bool) -> str:
    if not chat:
        return example.prompt
    if tokenizer.chat_template is None:
        raise ValueError("data.chat=true, but the model's tokeniser has no chat template")
    return tokenizer.apply_chat_template(
        _turns(example), tokenize=False, add_generation_prompt=True
    )


def _turns(example: Example) -> list[dict[str, str]]:
    said = [*example.history, ("user", example.prompt)]
    return [{"role": role, "content": content} for role, content in said]


def _warn_of_cuts(rows: int, prompts: int, responses: int, max_length: int) -> None:
    if prompts or responses:
        log.warning(
            "of %d examples, %d prompts and %d responses were shortened to max_length=%d tokens",
            rows,
            prompts,
            responses,
            max_length,
        )
