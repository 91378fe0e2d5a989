"""Where the verbs find the project: its `conf/` folder and its apps.

The library is installed; the apps (strategies, client_app, server_app) and `conf/` lie in the
project's folder, which a verb is given by `--app`.
"""

import argparse
import sys
from pathlib import Path


def add_app(parser: argparse.ArgumentParser) -> None:
    """The argument `--app`."""
    parser.add_argument("--app", default=".", help="the project's folder (default: this one)")


def enter(app: str) -> Path:
    """Make the project's apps importable and return its `conf/`.

    Raises:
        ValueError: when the folder is not one of this project.
    """
    folder = Path(app).expanduser().resolve()
    if not (folder / "conf" / "config.yaml").is_file():
        raise ValueError(
            f"{folder} has no conf/config.yaml: go to the project's folder or set --app"
        )
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return folder / "conf"
