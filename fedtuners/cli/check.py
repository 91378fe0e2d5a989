"""What is against a run, found in seconds, before Flower is started or anything trains."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedtuners.config import Config
    from fedtuners.tasks import Splits


def check(overrides: Sequence[str], conf: Path, here: bool) -> "Config":
    """The configuration of a run that can start.

    Args:
        overrides: Hydra's words.
        conf: the project's folder of choices.
        here: whether the run's model and rows are this machine's, as in a simulation; those of a
            deployment are looked at by its server and its sites.

    Raises:
        ValueError: in one sentence, what is wrong and how to mend it.
        OSError: when the run folder cannot be written.
    """
    from fedtuners.cli.plan import examine
    from fedtuners.config import ConfigError, compose
    from fedtuners.planning import read_base
    from fedtuners.tasks import load
    from fedtuners.tuned import choose_device
    from server_app.folder import outputs
    from server_app.resume import resumed
    from server_app.track import make_tracker

    config = compose(overrides, conf)
    if not here:
        return config
    if config.resume is not None:
        config = resumed(config, overrides)
    choose_device(config.device)
    make_tracker(config)
    config = dealt(config, load(config.data, config.seed))
    _, problems = examine(config, read_base(config), config.federation.clients, memory=False)
    if problems:
        raise ConfigError("; ".join(problems))
    check_writable(outputs(config))
    return config


def dealt(config: "Config", rows: "Splits") -> "Config":
    """The configuration with the labels of its rows; PartitionError if they cannot be dealt."""
    from fedtuners.tasks import partition

    partition(rows.train, config.partition, config.federation.clients, client=0)
    return replace(config, data=replace(config.data, labels=list(rows.labels)))


def check_writable(folder: Path) -> None:
    """Raise OSError, with its path, when nothing can be written into a folder that may be new."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".room-") as file:
            file.write(bytes(2**20))
            file.flush()
    except OSError as error:
        error.filename = str(folder)
        raise
