"""Structured logs: a JSON object a line, each with the run, round and node it is about.

What Flower's logger says goes to the terminal as ever; `recorded` also appends it to a file, where
`jq 'select(.round == 3)' log.jsonl` finds it again. What would crowd a terminal is said to
`journal`, which goes to the file alone.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

journal = logging.getLogger("fedtuners.journal")
journal.setLevel(logging.INFO)
journal.propagate = False

_place: ContextVar[dict[str, str | int]] = ContextVar("place", default={})  # noqa: B039  # read only


@contextmanager
def located(**place: str | int) -> Iterator[None]:
    """Within it, every recorded line carries these fields: run, round, node."""
    token = _place.set(_place.get() | place)
    try:
        yield
    finally:
        _place.reset(token)


@contextmanager
def recorded(path: Path) -> Iterator[None]:
    """Within it, what Flower's logger and `journal` say is appended to a file as JSON lines."""
    lines = JsonLines(path)
    loggers = logging.getLogger("flwr"), journal
    for logger in loggers:
        logger.addHandler(lines)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(lines)


class JsonLines(logging.Handler):
    """Appends to a file that several processes may share: a line is written at once, and whole."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a disk that is full costs the line and nothing else."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            **_place.get(),
            "message": record.getMessage(),
        }
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError:
            self.handleError(record)
