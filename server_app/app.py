"""The ServerApp that Flower loads."""

import shlex
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import InMemoryGrid

from fedtuners.config import compose
from server_app.polling import PATIENCE, PollingGrid
from server_app.resume import resumed
from server_app.run import run

CONF = Path(__file__).resolve().parent.parent / "conf"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Compose the configuration from the run's overrides, and run it or go on with it."""
    overrides = shlex.split(str(context.run_config.get("overrides", "")))
    config = compose(overrides, CONF)
    if config.resume is not None:
        config = resumed(config, overrides)
    simulated = isinstance(grid, InMemoryGrid)
    run(config, PollingGrid(grid, None if simulated else PATIENCE), str(context.run_id))
