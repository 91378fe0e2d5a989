"""The model card says what the run folder says, and its command composes the run again."""

import shlex
from pathlib import Path

import pytest
import yaml
from small_runs import CONF, words

from fedtuners.card import card, privacy
from fedtuners.config import compose, to_json
from fedtuners.reproduce import command, overrides
from fedtuners.results import read_run


@pytest.mark.parametrize("folder", ["adapter", "lora"])
def test_a_run_has_its_cards(fedex: Path, folder: str) -> None:
    text = (fedex / folder / "README.md").read_text()

    run = read_run(str(fedex))
    head = yaml.safe_load(text.split("---")[1])
    assert head["base_model"] == run.config.model.name
    assert head["library_name"] == "peft"
    assert f"| Bytes, all | {run.summary['bytes']['total']:,} |" in text
    assert f"{run.summary['final']:.4f} after" in text
    assert "strategy=fedex_lora" in text
    assert "torch 2." in text
    assert "no differential privacy" in text


def test_the_command_composes_the_run_again(fedex: Path, tiny: Path) -> None:
    text = (fedex / "lora" / "README.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("fedtuners run")]
    run = read_run(str(fedex))

    again = compose(shlex.split(line)[2:], CONF)

    run.config.outputs = again.outputs
    assert to_json(again) == to_json(run.config)


CHOICES = [
    [],
    ["strategy=fedex_lora", "adapter=lora", "federation.rounds=2", "seed=3"],
    ["model=minilm", "data=snli", "adapter.rank=4", "partition=iid"],
    ["model=org/name", "data=gsm8k", "partition=iid", "strategy=ffa_lora", "adapter=abba"],
    ["data=rows.jsonl", r"data.prompt='Q: {a} it\'s '", "data.labels=[a b,'1','null']"],
    ["strategy=fedex_lora", "adapter=lora", "+strategy.residual_rank=3"],
    ["+data.rename.a=b", "partition=pathological", "partition.classes=3"],
]


@pytest.mark.parametrize("chosen", CHOICES, ids=" ".join)
def test_overrides_compose_what_they_were_made_from(chosen: list[str]) -> None:
    config = compose(chosen, CONF)

    found = overrides(config, CONF)

    assert to_json(compose(found, CONF)) == to_json(config)
    assert len(found) <= len(chosen) + 3


def test_where_a_run_wrote_to_is_no_part_of_its_command(tiny: Path) -> None:
    config = compose(words(tiny, "outputs=/somewhere"), CONF)

    assert "somewhere" not in command(config, CONF)


def test_privacy_is_told(fedex: Path) -> None:
    run = read_run(str(fedex))
    spent = run.summary | {"privacy": {"protects": "example", "epsilon": 2.5, "delta": 1e-5}}

    text = card(run.config, spent, "fedtuners run", "lora")

    assert "ε = 2.5, δ = 1e-05" in text
    assert privacy({}) == "no differential privacy: no guarantee"
