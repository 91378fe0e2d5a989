"""Each tracker is given every round's numbers; the services are stood in for, and used if here."""

import sqlite3
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from local_grid import LocalGrid

from fedtuners.config import Config, ConfigError, compose
from server_app.run import CONF, run
from server_app.track import Tracker, make_tracker

Settings = Callable[..., Config]
LORA = ("strategy=fedavg_lora", "adapter=lora")


class FakeMlflow:
    """The functions of `mlflow` that are used, and what they were told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def set_tracking_uri(self, uri: str) -> None:
        self.told.append(("uri", uri))

    def set_experiment(self, name: str) -> None:
        self.told.append(("experiment", name))

    def start_run(self, run_id: str | None, run_name: str) -> Any:
        self.told.append(("run", run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "new"))

    def log_params(self, params: dict[str, Any]) -> None:
        self.told.append(("params", params))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.told.append(("metrics", step, metrics))

    def end_run(self) -> None:
        self.told.append(("end",))


class FakeWandb:
    """The functions of `wandb` that are used, and what they were told."""

    def __init__(self) -> None:
        self.rounds: dict[int, dict[str, float]] = {}
        self.summary: dict[str, float] = {}
        self.ended = False

    def init(self, **about: Any) -> "FakeWandb":
        self.about = about
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.rounds[step] = values

    def finish(self) -> None:
        self.ended = True


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)  # type: ignore[arg-type]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return fake


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    return fake


def tracked(settings: Settings, track: str, *words: str) -> Config:
    config = settings(*LORA, *words)
    config.track = compose([f"track={track}"], CONF).track
    return config


def test_mlflow_is_told_everything(settings: Settings, mlflow: FakeMlflow, tmp_path: Path) -> None:
    summary = run(tracked(settings, "mlflow"), LocalGrid(2), "1")

    folder = (tmp_path / "outputs" / "latest").resolve()
    rounds = {told[1]: told[2] for told in mlflow.told if told[0] == "metrics"}
    params = next(told[1] for told in mlflow.told if told[0] == "params")
    assert mlflow.told[:3] == [
        ("uri", f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}"),
        ("experiment", "fedtuners"),
        ("run", None, folder.name),
    ]
    assert params["adapter.rank"] == 2
    for number, score in summary["by_round"].items():
        assert rounds[int(number)]["global/loss"] == score
    assert {f"client/{client}/loss" for client in range(3)} <= rounds[2].keys()
    assert rounds[None]["bytes"] == summary["bytes"]["total"]
    assert mlflow.told[-1] == ("end",)
    assert not (folder / "tensorboard").exists()


def test_a_resumed_run_goes_on_in_its_record(
    settings: Settings, mlflow: FakeMlflow, tmp_path: Path
) -> None:
    run(tracked(settings, "mlflow"), LocalGrid(2), "1")
    mlflow.told.clear()

    longer = tracked(settings, "mlflow", "federation.rounds=3", "resume=latest")
    run(longer, LocalGrid(2), "1")

    assert ("run", "new", (tmp_path / "outputs" / "latest").resolve().name) in mlflow.told
    assert not any(told[0] == "params" for told in mlflow.told)
    assert [told[1] for told in mlflow.told if told[0] == "metrics"] == [3, None]


def test_a_service_that_goes_away_costs_no_round(
    settings: Settings, mlflow: FakeMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(mlflow, "log_metrics", away)

    summary = run(tracked(settings, "mlflow"), LocalGrid(2), "1")

    assert summary["rounds"] == 2


def test_wandb_is_told_everything(settings: Settings, wandb: FakeWandb, tmp_path: Path) -> None:
    summary = run(tracked(settings, "wandb"), LocalGrid(2), "1")

    folder = (tmp_path / "outputs" / "latest").resolve()
    assert wandb.about["project"] == "fedtuners"
    assert (wandb.about["id"], wandb.about["dir"]) == (folder.name, str(folder))
    assert wandb.about["config"]["federation.rounds"] == 2
    assert {r: values["global/loss"] for r, values in wandb.rounds.items()} == {
        int(r): score for r, score in summary["by_round"].items()
    }
    assert wandb.summary["final"] == summary["final"]
    assert wandb.ended


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_an_absent_package_is_named_with_its_fix(
    settings: Settings, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(ConfigError, match=rf"track={name} needs .* pip install 'fedtuners\[{name}"):
        run(tracked(settings, name), LocalGrid(2), "1")

    assert not (tmp_path / "outputs").exists()


def test_a_run_of_before_the_choice_tracks_nowhere(settings: Settings) -> None:
    config = settings(*LORA)
    config.track = {}

    assert type(make_tracker(config)) is Tracker


def test_only_a_tracker_is_made(settings: Settings) -> None:
    config = settings(*LORA)
    config.track = {"_target_": "pathlib.Path"}

    with pytest.raises(ConfigError, match=r"pathlib\.Path is no tracker"):
        make_tracker(config)


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_itself(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    summary = run(tracked(settings, "mlflow"), LocalGrid(2), "1")

    with sqlite3.connect(tmp_path / "outputs" / "mlflow.db") as database:
        found = database.execute("SELECT step, value FROM metrics WHERE key = 'global/loss'")
        assert dict(found.fetchall()) == {int(r): v for r, v in summary["by_round"].items()}


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_itself(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")

    run(tracked(settings, "wandb"), LocalGrid(2), "1")

    folder = (tmp_path / "outputs" / "latest").resolve()
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
