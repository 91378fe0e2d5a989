"""A run's log: plain lines in a file, colours and a bar of rounds in a terminal, the exit code."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fedtuners.cli.follow import follow
from fedtuners.cli.run import is_local

LONG = "x" * 200
SAID = f"""
import sys
print("\\x1b[92mINFO \\x1b[0m:      round 1: 2 clients, loss 0.5, exact_match 0.250 [bold]")
print("{LONG}", file=sys.stderr)
print("\\x1b[92mINFO \\x1b[0m:      round 2: 2 clients, loss 0.4, exact_match 0.500")
raise SystemExit(3)
"""
COMMAND = [sys.executable, "-c", SAID]


def test_a_file_gets_plain_whole_lines() -> None:
    file = io.StringIO()

    code = follow(COMMAND, 2, Console(file=file, width=80))

    assert code == 3
    assert "\x1b" not in file.getvalue()
    assert "\r" not in file.getvalue()
    lines = [line for line in file.getvalue().splitlines() if line.strip()]
    assert sorted(lines) == sorted(
        [
            "INFO :      round 1: 2 clients, loss 0.5, exact_match 0.250 [bold]",
            "INFO :      round 2: 2 clients, loss 0.4, exact_match 0.500",
            LONG,
        ]
    )


def test_a_terminal_gets_colours_and_a_bar_of_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()

    follow(COMMAND, 2, Console(file=file, width=120, force_terminal=True))

    assert "\x1b[92m" in file.getvalue()
    assert "2/2" in file.getvalue()
    assert "2 clients, loss 0.4, exact_match 0.500" in file.getvalue()


def test_a_log_file_has_no_control_codes(tmp_path: Path) -> None:
    script = f"from fedtuners.cli.follow import follow; follow({COMMAND!r}, 2)"

    with (tmp_path / "log").open("wb") as log:
        subprocess.run([sys.executable, "-c", script], stdout=log, check=True)

    text = (tmp_path / "log").read_bytes()
    assert b"\x1b" not in text
    assert b"exact_match 0.500" in text


@pytest.mark.parametrize(
    ("connection", "local"),
    [("", True), ("local", True), ("site", False), ("unknown", True)],
)
def test_which_connection_is_of_this_machine(
    connection: str, local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text(
        '[superlink]\ndefault = "local"\n[superlink.local]\naddress = ":local:"\n'
        '[superlink.site]\naddress = "example.org:8000"\n'
    )

    assert is_local(connection) is local


def test_without_a_configuration_flower_runs_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "nowhere"))

    assert is_local("")
