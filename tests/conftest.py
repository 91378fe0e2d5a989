"""Tiny models and rows on disk, so that a whole federation takes less than a second."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from fedtuners.config import Config, compose

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = ("adapter=", "strategy=", "partition=")
RANKS = {
    "adapter=lora": ["adapter.rank=2"],
    "adapter=lora_sb": ["adapter.rank=4"],
    "adapter=abba": ["adapter.rank1=2", "adapter.rank2=2"],
}
Settings = Callable[..., Config]


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the project's outputs, or finds what another left on a client's disk."""
    monkeypatch.setenv("FEDTUNERS_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("FEDTUNERS_STATE", str(tmp_path / "state"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random models `llama`, `gpt2`, `bert` and rows `rows.jsonl`, `labelled.jsonl`."""
    folder = tmp_path_factory.mktemp("tiny")
    for name, model in (("llama", _llama()), ("gpt2", _gpt2()), ("bert", _bert())):
        model.save_pretrained(folder / name)
        _tokenizer().save_pretrained(folder / name)
    draw = random.Random(0)
    words = [f"w{index}" for index in range(40)]
    rows = [{"instruction": draw.choice(words), "output": draw.choice(words)} for _ in range(60)]
    labelled = [
        {"text": draw.choice(words), "label": draw.choice(["no", "yes"])} for _ in range(60)
    ]
    for name, lines in (("rows", rows), ("labelled", labelled)):
        text = "\n".join(json.dumps(line) for line in lines)
        (folder / f"{name}.jsonl").write_text(text + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def settings(tiny: Path) -> Settings:
    """`settings("strategy=fed_sb", …)`: a run of seconds on a tiny model, with overrides."""

    def composed(*overrides: str, model: str = "llama", rows: str = "rows") -> Config:
        own = [
            *(f"model={tiny / model}", "model.dtype=float32", f"data={tiny / rows}.jsonl"),
            *("data.metric=loss", "data.max_length=24", "data.max_new_tokens=4"),
            *("federation.clients=3", "federation.rounds=2", "federation.wait=1"),
            *("train.steps=2", "train.batch_size=4", "start.rows=8", "start.batch_size=4"),
            *("partition=size", "device=cpu"),
        ]
        chosen = [word for word in overrides if word.startswith(GROUPS)]
        values = [word for word in overrides if not word.startswith(GROUPS)]
        adapter = next((word for word in chosen if word.startswith("adapter=")), "adapter=lora_sb")
        return compose([*own, *chosen, *RANKS[adapter], *values], CONF)

    return composed


@pytest.fixture
def federation(settings: Settings) -> Callable[..., Any]:
    """`federation("strategy=fedex_lora", …, grid=…)`: one that stands before its first round."""
    from federation import Federation  # the apps are slow to import, and most tests need none
    from local_grid import LocalGrid

    def made(*overrides: str, grid: LocalGrid | None = None, **files: str) -> Federation:
        return Federation(settings(*overrides, **files), grid or LocalGrid(2))

    return made


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("FEDTUNERS_SHARED", default))
    if not (folder / "data").is_dir() or not (folder / "models").is_dir():
        pytest.skip("no real data here: set FEDTUNERS_SHARED to a folder with data/ and models/")
    return folder


def _tokenizer() -> Any:
    """One token a byte."""
    special = ["<s>", "</s>", "<pad>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *letters])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def _llama() -> LlamaForCausalLM:
    """One layer with grouped queries; no projection of the MLP is square."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


def _gpt2() -> GPT2LMHeadModel:
    """One layer of Conv1D, which stores its weights transposed."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=260,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=64,
        initializer_range=0.3,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config)


def _bert() -> BertForSequenceClassification:
    """One layer, with dropout, and a head of its own."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=2,
    )
    return BertForSequenceClassification(config)
