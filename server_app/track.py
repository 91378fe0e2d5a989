"""Where a run's numbers go besides its own folder: TensorBoard, MLflow, Weights & Biases.

A tracker is opened with the run folder, given each round's numbers, and closed with the summary.
Which one is a choice of conf/track; another service is another class here and a YAML there.
"""

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fedtuners.config import Config, ConfigError
from fedtuners.reproduce import flat


class Tracker:
    """Takes a run's numbers; this one leaves them to the run folder."""

    def open(self, folder: Path, config: Config) -> None:
        """Begin the record of the run in `folder`, or go on with it."""

    def record(self, server_round: int, values: Mapping[str, float]) -> None:
        """Take the numbers of one round."""

    def close(self, totals: Mapping[str, float]) -> None:
        """End the record with the run's totals."""


class TensorBoard(Tracker):
    """Event files in the run folder: `tensorboard --logdir outputs`."""

    def open(self, folder: Path, config: Config) -> None:
        """See Tracker."""
        self.folder = folder / "tensorboard"

    def record(self, server_round: int, values: Mapping[str, float]) -> None:
        """See Tracker; a writer a round, so that a killed run has its events on the disk."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        with SummaryWriter(str(self.folder)) as writer:
            for name, value in values.items():
                writer.add_scalar(name, value, server_round)


class Mlflow(Tracker):
    """A run of an MLflow experiment, at MLFLOW_TRACKING_URI or in a file beside the run folders.

    Parameters
    ----------
    experiment
        The experiment's name; it is made when it is new.
    """

    def __init__(self, experiment: str = "fedtuners") -> None:
        self.experiment, self.mlflow = experiment, package("mlflow")

    def open(self, folder: Path, config: Config) -> None:
        """See Tracker; a resumed run goes on in the record whose id lies in its folder."""
        if "MLFLOW_TRACKING_URI" not in os.environ:
            self.mlflow.set_tracking_uri(f"sqlite:///{folder.parent / 'mlflow.db'}")
        self.mlflow.set_experiment(self.experiment)
        kept = folder / "mlflow-run"
        run_id = kept.read_text(encoding="utf-8") if kept.exists() else None
        run = self.mlflow.start_run(run_id=run_id, run_name=folder.name)
        if run_id is None:
            self.mlflow.log_params(flat(config))
        kept.write_text(run.info.run_id, encoding="utf-8")

    def record(self, server_round: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        self.mlflow.log_metrics(dict(values), step=server_round)

    def close(self, totals: Mapping[str, float]) -> None:
        """See Tracker."""
        self.mlflow.log_metrics(dict(totals))
        self.mlflow.end_run()


class Wandb(Tracker):
    """A run of a Weights & Biases project; WANDB_MODE=offline keeps it in the run folder.

    Parameters
    ----------
    project
        The project's name.
    """

    def __init__(self, project: str = "fedtuners") -> None:
        self.project, self.wandb = project, package("wandb")

    def open(self, folder: Path, config: Config) -> None:
        """See Tracker; a resumed run goes on in the record of its folder's name."""
        self.run = self.wandb.init(
            project=self.project,
            dir=str(folder),
            id=folder.name,
            name=folder.name,
            resume="allow",
            config=flat(config),
        )

    def record(self, server_round: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        self.run.log(dict(values), step=server_round)

    def close(self, totals: Mapping[str, float]) -> None:
        """See Tracker."""
        self.run.summary.update(dict(totals))
        self.run.finish()


def make_tracker(config: Config) -> Tracker:
    """The tracker that `track` names; ConfigError when its package is not installed."""
    try:
        tracker = instantiate(config.track) if config.track else Tracker()
    except InstantiationException as error:
        raise ConfigError(str(error.__cause__ or error).splitlines()[0]) from error
    if not isinstance(tracker, Tracker):
        raise ConfigError(f"track._target_={config.track.get('_target_')} is no tracker")
    return tracker


def package(name: str) -> Any:
    """The module of an optional package; ConfigError says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"track={name} needs the package {name}, which is not installed: pip install "
            f"'fedtuners[{name}]' on the server, or leave track= out"
        ) from error
