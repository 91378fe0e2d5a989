"""The quick start of docs/deployment.md, run as it is written, in a fresh folder."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from services import PORTS, ROOT, end_workers, free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
PROJECT = ("conf", "server_app", "client_app", "strategies", "docker", "pyproject.toml")


def commands() -> str:
    """The quick start's bash blocks."""
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    section = text.split("## Quick start")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```bash\n(.*?)```", section, re.DOTALL))


def test_the_quick_start_runs_as_written(tmp_path: Path) -> None:
    # Prepare: the project in a folder of its own, and ports that nobody uses.
    for name in PROJECT:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    script = commands()
    connect = "fedtuners federation init"
    assert connect in script
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    for port, free in ports.items():
        script = re.sub(rf"\b{port}\b", free, script)
    script = script.replace(connect, f"{connect} --control 127.0.0.1:{ports['8000']}")
    programs = str(Path(sys.executable).parent)
    environment = os.environ | {
        "PATH": os.pathsep.join([programs, os.environ["PATH"]]),
        "FLWR_HOME": str(tmp_path / ".flwr"),
        "FEDTUNERS_OUTPUTS": str(tmp_path / "outputs"),
        "FEDTUNERS_STATE": str(tmp_path / "state"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }

    # Execute
    log = (tmp_path / "log").open("wb")
    shell = subprocess.Popen(
        ["bash", "-euc", script],
        cwd=tmp_path,
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        code = shell.wait(1000)
    finally:
        os.killpg(shell.pid, signal.SIGKILL)  # the services in the background
        end_workers(tmp_path)

    # Assert
    said = (tmp_path / "log").read_text(errors="replace")
    assert code == 0, said[-5000:]
    assert "fed_sb with lora_sb: exact_match" in said
    assert (tmp_path / "outputs/latest/lora/adapter_model.safetensors").exists()
