"""Base models come frozen, by folder or by name, and a wrong name gets one sentence."""

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from fedtuners.tasks import DataConfig, ModelConfig, ModelError, make_task, model_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Any, tokenizer: Any) -> Path:
    path = tmp_path_factory.mktemp("llama")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_loads_frozen_in_the_dtype_asked_for(folder: Path, dtype: str) -> None:
    task = make_task(DataConfig(max_length=128))

    model, tokenizer = task.load_base(ModelConfig(str(folder), dtype))

    assert not model.training
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert not any(p.requires_grad for p in model.parameters())
    assert (tokenizer.pad_token_id, tokenizer.padding_side) == (2, "right")
    assert model.config.pad_token_id == 2


def test_a_new_head_is_drawn_from_its_seed_and_nothing_else(folder: Path) -> None:
    task = make_task(DataConfig(task="classification", max_length=128), ("no", "yes"))
    config = ModelConfig(str(folder))
    torch.manual_seed(5)
    undisturbed = torch.rand(1)
    torch.manual_seed(5)

    heads = [task.load_base(config, seed=seed)[0].score.weight for seed in (0, 0, 1)]

    assert torch.equal(torch.rand(1), undisturbed)
    assert heads[0].shape == (2, 32)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_tokeniser_without_padding_pads_with_its_end(tmp_path: Path, folder: Path) -> None:
    task = make_task(DataConfig(max_length=128))
    model, tokenizer = task.load_base(ModelConfig(str(folder)))
    tokenizer.pad_token = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    _, loaded = task.load_base(ModelConfig(str(tmp_path)))

    assert loaded.pad_token == "</s>"


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "a/b/c"])
def test_a_path_without_a_model_is_told(name: str) -> None:
    with pytest.raises(ModelError, match="is not a folder with a model in it"):
        model_path(name)


@pytest.mark.parametrize("task", ["causal_lm", "classification"])
def test_an_unknown_name_gets_one_sentence(task: str) -> None:
    made = make_task(DataConfig(task=task), ("a", "b"))

    with pytest.raises(
        ModelError, match=r"^model.name=no-such/model could not .*reached from here$"
    ):
        made.load_base(ModelConfig("no-such/model"))


def test_what_cannot_work_is_refused(folder: Path) -> None:
    config = ModelConfig(str(folder))
    with pytest.raises(ModelError, match=r"320 tokens .* more than the model's context of 256"):
        make_task(DataConfig(max_length=256, max_new_tokens=64)).load_base(config)
    with pytest.raises(ModelError, match="at least two labels, and got 1"):
        make_task(DataConfig(task="classification"), ("a",)).load_base(config)
    with pytest.raises(ValueError, match=r"model\.dtype=fp8 is not known; choose from float32"):
        ModelConfig("demo", "fp8")
