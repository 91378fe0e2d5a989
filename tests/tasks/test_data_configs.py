"""Every YAML of conf/model, conf/data and conf/partition fits its schema and says how to use it."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedtuners.tasks import DataConfig, ModelConfig, PartitionConfig
from fedtuners.tasks.formats import needed_columns

CONF = Path(__file__).resolve().parents[2] / "conf"
SCHEMAS = {"model": ModelConfig, "data": DataConfig, "partition": PartitionConfig}
FILES = [path for group in SCHEMAS for path in sorted((CONF / group).glob("*.yaml"))]
OPEN = {"model": {"name": "org/model"}, "data": {"source": "rows.jsonl"}}


def compose(path: Path, **fields: str) -> ModelConfig | DataConfig | PartitionConfig:
    group = path.parent.name
    own = OmegaConf.merge(SCHEMAS[group], OmegaConf.load(path), fields)
    return OmegaConf.to_object(OmegaConf.create({"data": {"group": "intent"}, group: own})[group])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_fits_the_schema(path: Path) -> None:
    is_open = path.stem in ("hf", "custom")
    fields = OPEN[path.parent.name] if is_open else {}

    made = compose(path, **fields)

    assert isinstance(made, SCHEMAS[path.parent.name])
    if isinstance(made, DataConfig):
        assert needed_columns(made)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_is_headed_by_its_command(path: Path) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    group, name = path.parent.name, path.stem

    commands = [line for line in head if "flwr run . --run-config" in line]
    assert len(head) >= 2
    assert len(commands) == 1
    assert f"{group}={name}" in commands[0]


def test_a_mistyped_key_is_refused() -> None:
    with pytest.raises(OmegaConfBaseException, match="promt"):
        compose(CONF / "data" / "gsm8k.yaml", promt="{question}")
