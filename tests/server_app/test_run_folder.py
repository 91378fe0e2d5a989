"""One run from configuration to folder: what it leaves behind, and that it repeats bit for bit."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from local_grid import LocalGrid
from omegaconf import OmegaConf
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fedtuners.adapters import attach_residual
from fedtuners.config import Config
from server_app.run import run
from strategies.messages import content_bytes

Settings = Callable[..., Config]
METHODS = [
    ("fedavg_lora", "lora"),
    ("ffa_lora", "lora"),
    ("fedex_lora", "abba"),
    ("fed_sb", "lora_sb"),
]
IDS = torch.randint(3, 250, (3, 9), generator=torch.Generator().manual_seed(0))
CLASSIFIED = ("data.task=classification", "data.metric=accuracy", "train.learning_rate=0.05")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


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


@pytest.mark.parametrize(("method", "adapter"), METHODS)
def test_a_run_leaves_all_it_promises(
    settings: Settings, tmp_path: Path, method: str, adapter: str
) -> None:
    grid = LocalGrid(2)
    config = settings(f"strategy={method}", f"adapter={adapter}", "train.learning_rate=0.05")

    summary = run(config, grid, "1")

    folder = latest(tmp_path)
    assert folder.name.endswith(f"_{method}")
    assert json.loads((folder / "summary.json").read_text()) == summary
    _summary(summary, config, method, adapter)
    _bytes(summary, grid)
    _metrics(folder, summary)
    _events(folder, summary)
    assert OmegaConf.load(folder / "config.yaml").federation.rounds == 2
    assert (folder / "metric.png").read_bytes().startswith(b"\x89PNG")
    _same_logits(folder, config)


def _summary(summary: dict[str, Any], config: Config, method: str, adapter: str) -> None:
    assert (summary["strategy"], summary["adapter"], summary["metric"]) == (method, adapter, "loss")
    assert list(summary["by_round"]) == ["0", "1", "2"]
    assert summary["by_round"]["0"] == summary["initial"]
    assert summary["by_round"]["2"] == summary["final"] != summary["initial"]
    assert summary["trainable_parameters"] > 0
    assert (summary["clients"], summary["rounds"]) == (3, 2)
    assert summary["model"] == config.model.name
    seconds = summary["seconds"]
    assert 0 < seconds["training"] + seconds["evaluation"] <= seconds["total"] + 0.1


def _bytes(summary: dict[str, Any], grid: LocalGrid) -> None:
    counted = summary["bytes"]
    sent = sum(content_bytes(m.content) for m in [*grid.sent, *grid.replies])
    assert counted["total"] == sent
    rounds = 6 * (counted["up_per_client_round"] + counted["down_per_client_round"])
    assert abs(counted["initialisation"] + rounds - sent) <= 6
    assert counted["up_per_client_round"] > 4 * summary["trainable_parameters"]


def _metrics(folder: Path, summary: dict[str, Any]) -> None:
    rows = lines(folder)
    assert [(row["round"], row.get("client")) for row in rows] == [
        (0, None),
        *((1, client) for client in (0, 1, 2, None)),
        *((2, client) for client in (0, 1, 2, None)),
    ]
    for row in rows:
        if "client" in row:
            assert row["up"] > 0
            assert row["down"] > 0
            assert math.isfinite(row["loss"])
        else:
            assert row["loss"] == summary["by_round"][str(row["round"])]


def _events(folder: Path, summary: dict[str, Any]) -> None:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    values = {event.step: event.value for event in events.Scalars("global/loss")}
    assert values == pytest.approx({int(r): v for r, v in summary["by_round"].items()}, rel=1e-6)
    assert [event.step for event in events.Scalars("client/0/loss")] == [1, 2]


def _same_logits(folder: Path, config: Config) -> None:
    """The adapter with its residual, and the stock LoRA that stands for both."""

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(config.model.name)

    own = PeftModel.from_pretrained(base(), folder / "adapter")
    residual = folder / "adapter" / "residual.safetensors"
    if residual.exists():
        state = load_file(residual)
        modules = {name.rpartition(".")[0] for name in state}
        attach_residual(
            own, {m: (state[f"{m}.residual_L"], state[f"{m}.residual_R"]) for m in modules}
        )
    plain = PeftModel.from_pretrained(base(), folder / "lora")
    assert residual.exists() == ("fedex" in folder.name)
    torch.testing.assert_close(logits(plain), logits(own), atol=1e-5, rtol=1e-5)
    assert (logits(plain) - logits(base())).abs().max() > 1e-3


@pytest.mark.parametrize(("method", "adapter"), METHODS)
def test_a_classifiers_head_travels_and_is_averaged(
    settings: Settings, tmp_path: Path, method: str, adapter: str
) -> None:
    words = (f"strategy={method}", f"adapter={adapter}", *CLASSIFIED)
    config = settings(*words, model="bert", rows="labelled")

    summary = run(config, LocalGrid(2), "1")

    folder = latest(tmp_path)
    head = tensors(folder)["lora/base_model.model.classifier.weight"]
    assert summary["metric"] == "accuracy"
    assert head.shape == (2, 16)
    base = AutoModelForSequenceClassification.from_pretrained(config.model.name, num_labels=2)
    assert not torch.equal(head, base.classifier.weight)
    if method != "fedex_lora":  # its own adapter lies beside its residual
        own = PeftModel.from_pretrained(base, folder / "adapter")
        found = logits(own)
        plain = AutoModelForSequenceClassification.from_pretrained(config.model.name, num_labels=2)
        torch.testing.assert_close(
            logits(PeftModel.from_pretrained(plain, folder / "lora")), found, atol=1e-5, rtol=1e-5
        )


def test_evaluation_may_skip_rounds_but_not_the_first_and_last(
    settings: Settings, tmp_path: Path
) -> None:
    words = ("strategy=fedavg_lora", "adapter=lora", "federation.rounds=3", "evaluation.every=2")

    summary = run(settings(*words), LocalGrid(2), "1")

    assert list(summary["by_round"]) == ["0", "2", "3"]


def test_a_run_that_stops_early_ends_with_an_evaluated_round(settings: Settings) -> None:
    words = ("strategy=fedavg_lora", "adapter=lora", "federation.rounds=5")
    config = settings(*words, "federation.patience=1", "data.metric=exact_match")

    summary = run(config, LocalGrid(2), "1")  # a random model scores 0, round after round

    assert summary["rounds"] == 1
    assert max(map(int, summary["by_round"])) == summary["rounds"]


def test_a_mismatch_of_strategy_and_adapter_leaves_no_folder(
    settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="choose adapter=lora_sb, or strategy=ffa_lora"):
        run(settings("strategy=fed_sb", "adapter=lora"), LocalGrid(2), "1")

    assert not (tmp_path / "outputs").exists()
