"""One run of a comparison in this process: a federation, or a baseline without one.

To be imported once the apps can be (fedtuners.cli.project.enter).
"""

import os
import tempfile
import time
from pathlib import Path
from statistics import fmean

from client_app import handlers
from fedtuners.baselines import baseline
from fedtuners.cells import Cell, baseline_of
from fedtuners.comparison import COUNTED
from fedtuners.config import Config, make_adapter
from fedtuners.results import Run, read_run
from server_app.folder import RunFolder
from server_app.local import InProcessGrid
from server_app.run import run


def performed(cell: Cell, config: Config) -> Run:
    """Run one federation, or one baseline, in this process."""
    kind = baseline_of(cell)
    if kind is None:
        federated(config)
    else:
        without_federation(kind, config)
    return read_run(f"{config.outputs}/latest")


def federated(config: Config) -> None:
    """One federation, with client state that does not outlive it."""
    before = os.environ.get("FEDTUNERS_STATE")
    with tempfile.TemporaryDirectory() as state:
        os.environ["FEDTUNERS_STATE"] = state
        try:
            grid = InProcessGrid(config.federation.clients, handlers.answer)
            run(config, grid, Path(str(config.outputs)).name)
        finally:
            os.environ.pop("FEDTUNERS_STATE")
            if before is not None:
                os.environ["FEDTUNERS_STATE"] = before


def without_federation(kind: str, config: Config) -> None:
    """One baseline, which leaves the configuration, the scores and the summary of a run."""
    started = time.monotonic()
    before, trained, each = baseline(kind, config)
    metric, rounds = config.data.measured, config.federation.rounds
    score = fmean(one.score for one in each)
    lines = [
        {"round": rounds, "client": client, "loss": one.loss, "num-examples": one.rows}
        | {"steps": one.steps, "up": 0, "down": 0, metric: one.score}
        for client, one in enumerate(each if kind == "alone" else [])
    ]
    folder = RunFolder.create(config, kind)
    folder.append_metrics([{"round": 0, metric: before}, *lines, {"round": rounds, metric: score}])
    folder.write_json(
        "summary.json",
        {
            "strategy": kind,
            "adapter": make_adapter(config).name,
            "model": config.model.name,
            "data": config.data.source,
            "clients": config.federation.clients,
            "rounds": rounds,
            "trainable_parameters": trained,
            "metric": metric,
            "initial": before,
            "final": score,
            "by_round": {"0": before, str(rounds): score},
            "steps": sum(one.steps for one in each),
            "bytes": dict.fromkeys(COUNTED, 0),
            "seconds": {"total": round(time.monotonic() - started, 2)},
        },
    )
