"""A run's log as it comes: in a terminal with a bar of its rounds below, in a file plain lines."""

import os
import re
import subprocess
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

ROUND = re.compile(r"round (\d+): (.*)")  # as server_app/report.py says it


def follow(command: Sequence[str], rounds: int, console: Console | None = None) -> int:
    """Run a command, print what it says, and return its exit code.

    Colours and the bar are for a terminal alone: a file gets neither control codes nor lines that
    overwrite each other.
    """
    console = console or Console()
    columns = (
        *(TextColumn("rounds"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn()),
        TextColumn("{task.description}", markup=False),
    )
    unbuffered = os.environ | {"PYTHONUNBUFFERED": "1"}
    with (
        Progress(
            *columns, console=console, transient=True, disable=not console.is_interactive
        ) as bar,
        subprocess.Popen(
            list(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=unbuffered,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        task = bar.add_task("starting", total=rounds)
        assert process.stdout is not None
        for line in process.stdout:
            text = Text.from_ansi(line.rstrip())
            console.print(text, soft_wrap=True)
            if found := ROUND.search(text.plain):
                bar.update(task, completed=int(found[1]), description=found[2])
    return process.returncode
