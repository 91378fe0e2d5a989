"""Federations on bases of 8 or 4 bits: they learn, export, and are planned as they are stored."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_grid import LocalGrid
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fedtuners.adapters.linear import QUANTISED, is_quantised
from fedtuners.cli.plan import examine
from fedtuners.config import Config
from fedtuners.export import to_lora, to_merged
from fedtuners.planning import read_base
from fedtuners.results import Model, Run, read_run, with_adapter
from server_app.run import run

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: fedtuners[cuda]")

Settings = Callable[..., Config]
IDS = torch.tensor([[0, 40, 41, 42, 43, 44]])
METHODS = {
    "lora": ["strategy=fedavg_lora", "adapter=lora"],
    "lora_sb": ["strategy=fed_sb", "adapter=lora_sb"],
    "lora_sb from the server": ["strategy=fed_sb", "adapter=lora_sb", "start.source=server"],
    "lora_xs": ["strategy=fed_sb", "adapter=lora_sb", "adapter.init=weights"],
    "abba": ["strategy=fedavg_lora", "adapter=abba", "adapter.alpha=4"],
    "residuals": ["strategy=fedex_lora", "adapter=lora"],
}
LEARNS = ("train.steps=10", "train.learning_rate=0.02", "federation.rounds=2")


def finished(config: Config, tmp_path: Path) -> Run:
    """The run of a configuration on two nodes."""
    run(config, LocalGrid(2), "quantised")
    return read_run(str((tmp_path / "outputs" / "latest").resolve()))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.float()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_on_four_bits(settings: Settings, tmp_path: Path, method: str) -> None:
    config = settings(*METHODS[method], *LEARNS, "model.quantization=nf4")

    found = finished(config, tmp_path)

    assert found.config.model.quantization == "nf4"
    losses = [line["loss"] for line in found.rounds]
    assert losses[-1] < losses[0] - 0.02


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_exports_answer_as_the_quantised_run(
    settings: Settings, tmp_path: Path, quantization: str
) -> None:
    """A LoRA beside the quantised base, and a plain model with the weights that training saw."""
    words = (*METHODS["residuals"], *LEARNS, f"model.quantization={quantization}")
    found = finished(settings(*words, model="gpt2"), tmp_path)
    tuned = Model(found.config, found.path / "adapter")
    to_lora(found, tmp_path / "lora")
    base = Model(found.config).network
    assert any(is_quantised(layer) for layer in base.modules())

    moved = to_merged(found, tmp_path / "merged")

    beside = with_adapter(base, tmp_path / "lora", found.config.model.name).eval()
    torch.testing.assert_close(logits(beside), logits(tuned.network), atol=1e-4, rtol=1e-3)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert not any(is_quantised(layer) for layer in merged.modules())
    exact = 1e-4 if quantization == "nf4" else 0.1  # int8 also rounds what goes into a layer
    torch.testing.assert_close(logits(merged), logits(tuned.network), atol=exact, rtol=1e-3)
    assert moved < 1e-4
    original = Model(replace(found.config, model=replace(found.config.model, quantization=None)))
    assert (logits(original.network) - logits(base)).abs().max() > 1e-3


def test_a_classifiers_head_is_not_quantised_and_trains(settings: Settings, tmp_path: Path) -> None:
    words = ("strategy=fedavg_lora", "adapter=lora", "data.task=classification", *LEARNS)
    config = settings(*words, "model.quantization=nf4", model="bert", rows="labelled")

    found = finished(config, tmp_path)

    merged = tmp_path / "merged"
    to_merged(found, merged)
    loaded = AutoModelForSequenceClassification.from_pretrained(merged).eval()
    base = Model(found.config).network
    assert type(base.classifier) is nn.Linear
    assert is_quantised(base.bert.pooler.dense)
    assert (loaded.classifier.weight - base.classifier.weight).abs().max() > 1e-3


def test_a_private_run(settings: Settings, tmp_path: Path) -> None:
    words = (*METHODS["lora_sb"], "privacy=example", "privacy.accountant=rdp", "partition=iid")

    found = finished(settings(*words, "model.quantization=nf4"), tmp_path)

    assert len(found.rounds) == 3


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_plan_counts_the_packed_weights(settings: Settings, quantization: str) -> None:
    config = settings(*METHODS["lora"], f"model.quantization={quantization}")
    plain = replace(config, model=replace(config.model, quantization=None))

    planned, _ = examine(config, read_base(config), nodes=2)
    wider, _ = examine(plain, read_base(plain), nodes=2)

    base = Model(config).network
    stored = sum(packed(layer) for layer in base.modules() if is_quantised(layer))
    rest = sum(t.untyped_storage().nbytes() for t in unpacked(base).values())
    assert planned is not None
    assert planned.memory is not None
    assert wider is not None
    assert wider.memory is not None
    assert planned.memory.weights == stored + rest
    assert planned.memory.weights < wider.memory.weights
    largest = 24 * 16 * 4  # the MLP's, once dequantised
    assert planned.memory.activations == wider.memory.activations + largest


def packed(layer: nn.Module) -> int:
    """Bytes of a packed weight and its constants, without the code book that all layers share."""
    weight: Any = layer.weight
    if weight.dtype == torch.int8:
        return weight.nbytes + weight.SCB.nbytes
    constants = weight.quant_state
    return weight.nbytes + constants.absmax.nbytes + constants.state2.absmax.nbytes


def unpacked(base: nn.Module) -> dict[int, Tensor]:
    """The model's other tensors, shared ones once."""
    return {
        id(t): t for t in [*base.parameters(), *base.buffers()] if type(t).__name__ not in QUANTISED
    }
