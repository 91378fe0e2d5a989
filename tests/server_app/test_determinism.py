"""A run is a function of its configuration: not of the process, the nodes, or what ran before."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from local_grid import LocalGrid
from safetensors.torch import load_file

from fedtuners.config import Config
from server_app.run import run

Settings = Callable[..., Config]


def latest(tmp_path: Path) -> Path:
    return (tmp_path / "outputs" / "latest").resolve()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.name}/{name}": value
        for path in sorted(folder.glob("*/*.safetensors"))
        if path.parent.name in ("adapter", "lora")
        for name, value in load_file(path).items()
    }


@pytest.mark.parametrize(("method", "adapter"), [("fed_sb", "lora_sb"), ("fedex_lora", "lora")])
def test_a_run_repeats_bit_for_bit_whatever_ran_between(
    settings: Settings, tmp_path: Path, method: str, adapter: str
) -> None:
    words = (f"strategy={method}", f"adapter={adapter}", "adapter.dropout=0.2")
    run(settings(*words), LocalGrid(2), "1")
    first, measured = tensors(latest(tmp_path)), lines(latest(tmp_path))
    run(settings("strategy=ffa_lora", "adapter=abba", "seed=3"), LocalGrid(3), "2")
    torch.rand(7)  # whoever drew from the global generator in between changes nothing

    run(settings(*words), LocalGrid(2), "3")

    second = tensors(latest(tmp_path))
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], value) for name, value in first.items())
    assert [row["loss"] for row in lines(latest(tmp_path))] == [row["loss"] for row in measured]


def test_the_number_of_nodes_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    """Clients are parts of the data, whichever node answers for them."""
    run(settings("strategy=fed_sb"), LocalGrid(1), "1")
    first = tensors(latest(tmp_path))

    run(settings("strategy=fed_sb"), LocalGrid(3), "2")

    assert all(torch.equal(tensors(latest(tmp_path))[n], value) for n, value in first.items())


def test_another_seed_is_another_run(settings: Settings, tmp_path: Path) -> None:
    words = ("strategy=fedavg_lora", "adapter=lora")
    run(settings(*words), LocalGrid(2), "1")
    first = tensors(latest(tmp_path))

    run(settings(*words, "seed=1"), LocalGrid(2), "2")

    assert any(not torch.equal(tensors(latest(tmp_path))[n], value) for n, value in first.items())
