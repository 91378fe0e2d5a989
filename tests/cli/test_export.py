"""What `export` writes answers as the run's own model does, and loads without this project."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from small_runs import contents
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fedtuners.export import to_lora
from fedtuners.results import Model, read_run

Verb = Callable[..., tuple[int, str, str]]
IDS = torch.tensor([[0, 40, 41, 42, 43, 44]])


@pytest.mark.parametrize("name", ["fed_sb", "fedex", "classifier"])
def test_a_merged_model_gives_the_logits_of_the_run(
    name: str, request: pytest.FixtureRequest, verb: Verb, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(name)
    kind: Any = AutoModelForCausalLM
    if name == "classifier":
        kind = AutoModelForSequenceClassification

    code, out, _ = verb("export", folder, "--to", "merged", "--out", tmp_path / "merged")

    assert code == 0
    assert "change of a logit" in out
    merged = kind.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), tuned_logits(folder), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(base_logits(folder), tuned_logits(folder), atol=1e-4)


@pytest.mark.parametrize("name", ["fed_sb", "fedex", "classifier"])
def test_a_lora_gives_the_logits_of_the_run(
    name: str, request: pytest.FixtureRequest, verb: Verb, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(name)

    code, out, _ = verb("export", folder, "--to", "lora", "--out", tmp_path / "lora")

    run = read_run(str(folder))
    base = Model(run.config).network
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "lora")).eval()
    assert code == 0
    assert out.startswith("exact")
    torch.testing.assert_close(logits(loaded), tuned_logits(folder), atol=2e-5, rtol=1e-4)


def test_a_lora_loads_where_this_project_is_not(fed_sb: Path, tiny: Path, tmp_path: Path) -> None:
    to_lora(read_run(str(fed_sb)), tmp_path / "lora")
    script = (
        "import sys, torch; sys.modules['fedtuners'] = None\n"
        "from peft import AutoPeftModelForCausalLM\n"
        f"model = AutoPeftModelForCausalLM.from_pretrained({str(tmp_path / 'lora')!r}).eval()\n"
        f"print(model(input_ids=torch.tensor({IDS.tolist()})).logits.double().sum().item())"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    expected = tuned_logits(fed_sb).double().sum().item()
    assert float(done.stdout) == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_truncation_states_the_error_that_it_makes(fedex: Path, verb: Verb, tmp_path: Path) -> None:
    code, out, _ = verb("export", fedex, "--to", "lora", "--max-rank", 1, "--out", tmp_path / "l")

    config = json.loads((tmp_path / "l" / "adapter_config.json").read_text())
    assert code == 0
    assert config["r"] == 1
    assert "relative error up to" in out


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["nowhere", "--to", "lora"], "is no run folder"),
        (["{run}", "--to", "lora", "--max-rank", "0"], "max_rank 0"),
        (["{run}", "--to", "merged", "--max-rank", "3"], "--max-rank is for --to lora"),
        (["{run}", "--to", "lora", "--out", "{run}"], "is there already"),
        (["{run}", "--to", "gguf"], "invalid choice"),
    ],
)
def test_wrong_input_gives_one_sentence_and_changes_nothing(
    fed_sb: Path, verb: Verb, wrong: list[str], sentence: str
) -> None:
    before = contents(fed_sb)

    code, _, err = verb("export", *(word.replace("{run}", str(fed_sb)) for word in wrong))

    assert code == 2
    assert sentence in err
    assert contents(fed_sb) == before


def test_a_full_disk_leaves_nothing_behind(
    fed_sb: Path, verb: Verb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedtuners.adapters.export.save_file", full)

    code, _, err = verb("export", fed_sb, "--to", "lora", "--out", tmp_path / "lora")

    assert code == 2
    assert "No space left" in err
    assert list(tmp_path.glob("*lora*")) == []


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def tuned_logits(folder: Path) -> torch.Tensor:
    model = Model(read_run(str(folder)).config, folder / "adapter")
    with model.side("adapter") as network:
        return logits(network)


def base_logits(folder: Path) -> torch.Tensor:
    model = Model(read_run(str(folder)).config, folder / "adapter")
    with model.side("base") as network:
        return logits(network)
