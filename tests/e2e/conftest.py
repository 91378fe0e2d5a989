"""A Flower of its own for the whole-command tests: home, ports, folders, and its end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]

TRAP = """
import pathlib
pathlib.Path(__file__).with_name("IMPORTED").touch()
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another project's folder, with packages that are called like ours."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in ("client_app", "server_app", "strategies"):
        (folder / name).mkdir()
        for module in ("__init__", "app", "worker", "handlers", "messages", "run"):
            (folder / name / f"{module}.py").write_text(TRAP)
    return folder


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a Flower whose SuperLink ends with the module's tests."""
    home = tmp_path_factory.mktemp("flower")
    environment = os.environ | {
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(_free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(_free_port()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FEDTUNERS_OUTPUTS": str(home / "outputs"),
        "FEDTUNERS_STATE": str(home / "state"),
        "COLUMNS": "120",
    }
    try:
        yield environment
    finally:
        _end(home)


@pytest.fixture(scope="module")
def fedtuners(elsewhere: Path, flower: dict[str, str]) -> Command:
    """Run `fedtuners …` from another project's folder, by a SuperLink that is started there."""
    program = str(Path(sys.executable).with_name("fedtuners"))

    def command(verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, verb, "--app", str(ROOT), *words],
            cwd=elsewhere,
            env=flower,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return command


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(home: Path) -> None:
    """End the processes that were started with this home, and no others."""
    mark = f"FLWR_HOME={home / 'flwr'}".encode()
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), sign)
            except OSError:
                continue  # gone, or another's
        time.sleep(1)
