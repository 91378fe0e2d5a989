"""Small finished runs for the verbs to work on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import finished, words

from fedtuners.cli.main import main


@pytest.fixture(scope="session")
def fed_sb(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of Fed-SB."""
    chosen = words(tiny, "strategy=fed_sb", "adapter=lora_sb", "adapter.rank=4")
    return finished(tmp_path_factory.mktemp("fed-sb"), chosen)


@pytest.fixture(scope="session")
def fedex(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose result has residuals beside the adapter."""
    chosen = words(tiny, "strategy=fedex_lora", "adapter=lora", "adapter.rank=2")
    return finished(tmp_path_factory.mktemp("fedex"), chosen)


@pytest.fixture(scope="session")
def classifier(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classification run, by ABBA, whose head trains too."""
    chosen = words(
        *(tiny, "strategy=fedavg_lora", "adapter=abba", "adapter.rank1=2", "adapter.rank2=2"),
        *("data.task=classification", "data.metric=accuracy", "data.label=label"),
        model="bert",
        rows="labelled",
    )
    return finished(tmp_path_factory.mktemp("classifier"), chosen)


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`verb("plan", …)` runs the command; returns its exit code, stdout and stderr."""

    def called(*arguments: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return called
