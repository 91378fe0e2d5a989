"""The loss is on the response alone, nothing is cut in silence, and nothing is tokenised twice."""

from typing import Any

import pytest

from fedtuners.tasks.encoding import (
    encode_instructions,
    encode_labelled,
    encode_prompts,
    stop_ids,
)
from fedtuners.tasks.formats import Example, Labelled

EXAMPLE = Example("ask: ", "answer")


def test_labels_are_the_response_and_its_end(tokenizer: Any) -> None:
    item = encode_instructions([EXAMPLE], tokenizer, 64, chat=False).items[0]

    labels = item["labels"]
    assert isinstance(labels, list)
    assert tokenizer.decode(item["input_ids"]) == "<s>ask: answer</s>"
    assert labels[:6] == [-100] * 6
    assert labels[6:] == item["input_ids"][6:]
    assert tokenizer.decode(labels[6:]) == "answer</s>"


def test_generation_sees_the_prompt_of_training(tokenizer: Any) -> None:
    for chat in (False, True):
        item = encode_instructions([EXAMPLE], tokenizer, 64, chat).items[0]
        prompt = encode_prompts([EXAMPLE], tokenizer, 64, chat)[0]

        labels = item["labels"]
        assert isinstance(labels, list)
        assert item["input_ids"][: len(prompt)] == prompt
        assert labels[: len(prompt)] == [-100] * len(prompt)
        assert -100 not in labels[len(prompt) :]


def test_a_long_prompt_loses_its_start_and_the_response_stays_whole(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    examples = [Example("0123456789", "answer"), EXAMPLE]

    encoded = encode_instructions(examples, tokenizer, 12, chat=False)

    assert tokenizer.decode(encoded.items[0]["input_ids"]) == "<s>6789answer</s>"
    assert (encoded.shortened_prompts, encoded.shortened_responses) == (2, 0)
    assert "of 2 examples, 2 prompts and 0 responses were shortened" in caplog.text


def test_a_prompt_that_is_cut_at_generation_is_told_once(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    examples = [Example("0123456789", ""), Example("ask", "")]

    first = encode_prompts(examples, tokenizer, 6, chat=False)
    again = encode_prompts(examples, tokenizer, 6, chat=False)

    assert tokenizer.batch_decode(first) == ["<s>56789", "<s>ask"]
    assert again == first
    assert caplog.text.count("of 2 examples, 1 prompts and 0 responses were shortened") == 1


def test_a_response_that_cannot_fit_is_cut_counted_and_does_not_end(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    encoded = encode_instructions([EXAMPLE], tokenizer, 5, chat=False)

    assert tokenizer.decode(encoded.items[0]["input_ids"]) == "<s>answ"
    assert (encoded.shortened_prompts, encoded.shortened_responses) == (1, 1)
    assert "1 responses were shortened" in caplog.text


def test_a_chat_is_rendered_by_the_template_and_ends_its_turn(tokenizer: Any) -> None:
    example = Example("Hi", "Yes?", (("system", "Brief."),))

    item = encode_instructions([example], tokenizer, 64, chat=True).items[0]

    text = "<|system|>Brief.<end>\n<|user|>Hi<end>\n<|assistant|>Yes?<end>"
    assert tokenizer.decode(item["input_ids"]) == text
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert stop_ids(tokenizer, chat=True) == sorted([tokenizer.eos_token_id, end])
    assert stop_ids(tokenizer, chat=False) == [tokenizer.eos_token_id]


def test_a_chat_without_a_template_is_refused(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)

    with pytest.raises(ValueError, match="tokeniser has no chat template"):
        encode_prompts([EXAMPLE], tokenizer, 64, chat=True)


def test_equal_rows_are_tokenised_once(tokenizer: Any) -> None:
    examples = [Example("p", "r"), Example("q", "s")]

    first = encode_instructions(examples, tokenizer, 64, chat=False)

    assert (
        encode_instructions([Example("p", "r"), Example("q", "s")], tokenizer, 64, False) is first
    )
    assert encode_instructions(examples, tokenizer, 65, chat=False) is not first
    assert encode_instructions(examples[::-1], tokenizer, 64, chat=False) is not first


def test_pairs_are_cut_at_the_longer_text_and_counted(tokenizer: Any) -> None:
    pairs = [Labelled(("abcdefgh", "xy"), 2), Labelled(("ab", "xy"), 0)]

    encoded = encode_labelled(pairs, tokenizer, 8)

    assert tokenizer.decode(encoded.items[0]["input_ids"]) == "<s>abcd<s>xy"
    assert [item["labels"] for item in encoded.items] == [2, 0]
    assert encoded.shortened_prompts == 1
