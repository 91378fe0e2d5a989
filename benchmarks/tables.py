"""What benchmarks of whole federations share: a run in this process, kept results, a table.

A table of many runs takes longer than anybody waits. So every finished run is a line of a JSON
file and is not repeated, and `fill` begins no run after its time.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from client_app import handlers
from fedtuners.config import compose
from server_app.local import InProcessGrid
from server_app.run import run

CONF = Path("conf")
Line = dict[str, Any]


@contextmanager
def federation(words: Sequence[str]) -> Iterator[tuple[Line, Path]]:
    """One federation with these overrides, a node per client: its summary and its run folder."""
    config = compose(words, CONF)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FEDTUNERS_STATE"] = f"{folder}/state"
        os.environ["FEDTUNERS_OUTPUTS"] = f"{folder}/outputs"
        grid = InProcessGrid(config.federation.clients, handlers.answer)
        yield run(config, grid, "benchmark"), Path(folder, "outputs", "latest")


def fill(
    path: Path, wanted: Iterable[Line], measure: Callable[[Line], Mapping[str, Any]], minutes: float
) -> list[Line]:
    """Measure what of `wanted` is not in the file yet; returns all that is there now.

    Args:
        path: of the JSON lines, each one of `wanted` and what was measured of it.
        wanted: what tells one run from the others.
        measure: makes one run.
        minutes: after which no run is begun.
    """
    until = time.monotonic() + 60 * minutes
    done = read(path)
    for key in wanted:
        if any(key.items() <= line.items() for line in done):
            continue
        if time.monotonic() > until:
            break
        done.append({**key, **measure(key)})
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done[-1]) + "\n")
    return done


def read(path: Path) -> list[Line]:
    """The lines that are already there."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """mean ± standard deviation, empty for no values."""
    if not values:
        return ""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"
