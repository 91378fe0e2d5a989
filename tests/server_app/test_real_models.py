"""Real pretrained models on real data, both tasks, where the files are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from local_grid import LocalGrid
from safetensors.torch import load_file

from fedtuners.config import compose
from server_app.run import run

CONF = Path(__file__).resolve().parents[2] / "conf"
METHODS = [
    ("fedavg_lora", "lora", "adapter.rank=4"),
    ("ffa_lora", "lora", "adapter.rank=4"),
    ("fedex_lora", "lora", "adapter.rank=4"),
    ("fed_sb", "lora_sb", "adapter.rank=16"),
]
Round = Callable[..., dict[str, Any]]


@pytest.fixture
def one_round() -> Round:
    """Run a few steps on two clients, offline."""

    def made(*words: str) -> dict[str, Any]:
        common = [
            *("federation.clients=2", "federation.rounds=1", "device=cpu", "start.rows=8"),
            *("start.batch_size=8", "train.batch_size=8", "data.test_rows=24"),
        ]
        return run(compose([*words, *common], CONF), LocalGrid(2), "run")

    return made


@pytest.mark.parametrize(("method", "adapter", "rank"), METHODS)
def test_minilm_learns_snli_by_every_method(
    shared: Path, tmp_path: Path, one_round: Round, method: str, adapter: str, rank: str
) -> None:
    rows = shared / "data/snli"
    summary = one_round(
        *("model=minilm", f"model.name={shared / 'models/minilm-l6-v2'}", "data=snli"),
        *(f"data.source={rows}", f"data.test_source={rows / 'validation.jsonl'}"),
        *("data.train_split=validation", "data.train_rows=24"),  # seen rows: few steps teach those
        *(f"strategy={method}", f"adapter={adapter}", rank, "adapter.targets=[query,value]"),
        *("data.metric=loss", "data.max_length=48", "train.steps=6"),
        *("partition=iid", "train.learning_rate=2e-3"),
    )

    folder = tmp_path / "outputs" / "latest"
    head = load_file(folder / "lora" / "adapter_model.safetensors")
    assert summary["metric"] == "loss"
    assert summary["final"] < summary["initial"]
    assert head["base_model.model.classifier.weight"].shape == (3, 384)
    assert all(bool(torch.isfinite(value).all()) for value in head.values())


@pytest.mark.parametrize(("method", "adapter", "rank"), [METHODS[2], METHODS[3]])
def test_a_story_model_learns_shakespeare_by_speaker(
    shared: Path, tmp_path: Path, one_round: Round, method: str, adapter: str, rank: str
) -> None:
    summary = one_round(
        *("model=stories260k", f"model.name={shared / 'models/stories260k'}", "data=shakespeare"),
        f"data.source={shared / 'data/shakespeare/tinyshakespeare.txt'}",
        *("partition=natural", f"strategy={method}", f"adapter={adapter}", rank),
        *("data.train_rows=200", "data.max_length=64", "train.steps=8"),
    )

    lines = (tmp_path / "outputs/latest/metrics.jsonl").read_text().splitlines()
    examples = [json.loads(line)["num-examples"] for line in lines if '"client"' in line]
    assert summary["final"] < summary["initial"]
    assert sum(examples) == 200
