"""The committed model: loads by the stock classes, is small, knows the old intents, no new one."""

import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from fedtuners.demo import MODEL_DIR, rows
from fedtuners.demo.pretrain import PROMPT, batches, collate, encode, exact_match, train

FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR)


def test_the_folder_is_complete_and_small() -> None:
    assert all((MODEL_DIR / file).is_file() for file in FILES)
    assert 1e6 < (MODEL_DIR / "model.safetensors").stat().st_size < 4e6
    assert sum(file.stat().st_size for file in MODEL_DIR.iterdir()) < 4.2e6


def test_it_is_a_llama_of_about_a_million_weights_in_full_precision(
    model: Any,
) -> None:
    assert isinstance(model, LlamaForCausalLM)
    assert 0.5e6 < model.num_parameters() < 1.5e6
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_it_knows_the_old_intents_and_none_of_the_new(model: Any, tokenizer: Any) -> None:
    assert exact_match(model, tokenizer, rows("old", 64, 1)) >= stated_score() - 0.1
    assert exact_match(model, tokenizer, rows("test", 64, 1)) <= 0.05


def test_prompt_and_response_have_the_tokens_of_the_whole(tokenizer: Any) -> None:
    """Tokens do not depend on where a text is cut, nor on special tokens being asked for."""
    for row in rows("train", 40, 0):
        prompt, response = PROMPT.format(**row), row["output"]
        parts = [tokenizer(text)["input_ids"] for text in (prompt, response)]

        assert (
            parts[0] + parts[1] == tokenizer(prompt + response, add_special_tokens=False).input_ids
        )
        assert tokenizer.decode(parts[0] + parts[1]) == prompt + response


def test_a_value_has_the_same_tokens_in_the_command_and_in_the_call(tokenizer: Any) -> None:
    in_command = tokenizer.tokenize("inside garage lora until 7:25 pm")
    in_call = tokenizer.tokenize("(garage=lora, until=7:25 pm)")
    value = tokenizer.tokenize("lora")

    assert all(" ".join(value) in " ".join(tokens) for tokens in (in_command, in_call))


def test_loss_is_on_the_response_and_its_end_only(tokenizer: Any) -> None:
    row = rows("train", 1, 0)[0]

    ids, labels = collate([*encode(tokenizer, [row]), ([5] * 90, 80)])

    assert ids.shape == labels.shape == (2, 90)
    assert tokenizer.decode(labels[0][labels[0] != -100]) == row["output"] + "<eos>"


def test_pretraining_lowers_the_loss(model: Any, tokenizer: Any) -> None:
    """The trainer itself, for a few steps on intents that are new to the model."""
    examples = encode(tokenizer, rows("train", 128, 0))
    ids, labels = next(batches(examples))
    before = model(input_ids=ids, labels=labels).loss.item()

    train(model, examples * 2)

    assert model(input_ids=ids, labels=labels).loss.item() < before - 0.05


def stated_score() -> float:
    """The score on old intents that the model card states."""
    found = re.search(r"old intents[^|]*\| *(\d\.\d+)", (MODEL_DIR / "README.md").read_text())
    assert found, "the model card states no score on the old intents"
    return float(found[1])
