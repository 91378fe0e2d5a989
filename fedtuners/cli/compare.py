"""Compare strategies, adapters, seeds and splits, under equal rounds or equal bytes.

    fedtuners compare --over strategy=fed_sb,fedavg_lora --over seed=0,1,2 federation.rounds=10
    fedtuners compare --over strategy=fed_sb,ffa_lora --over partition=iid,dirichlet --bytes 20e6

Every federation runs in this process, one after another, each in a folder of its own below --out;
one that is there and finished is not run again, so an interrupted comparison goes on where it was.
What cannot run is left out, and said. results.csv has a row per run, and report.html the means over
the seeds with their standard deviations.
"""

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedtuners.cli.project import add_app, enter

if TYPE_CHECKING:
    from fedtuners.config import Config
    from fedtuners.results import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `fedtuners compare`."""
    parser.add_argument("overrides", nargs="*", help="Hydra overrides that all runs share")
    vary = "what to vary; may be repeated"
    parser.add_argument("--over", action="append", required=True, metavar="KEY=A,B", help=vary)
    parser.add_argument("--bytes", type=float, metavar="N", help="rounds as N bytes in all allow")
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="(comparison)")
    add_app(parser)


def main(parsed: argparse.Namespace) -> int:
    """Run what is missing, write the table and the page; returns the exit code."""
    conf = enter(parsed.app)
    from fedtuners import comparison
    from fedtuners.config import compose

    runs: dict[comparison.Cell, Run] = {}
    left_out: dict[comparison.Cell, str] = {}
    for cell in comparison.cells(parsed.over):
        folder = parsed.out.expanduser().absolute() / "runs" / slug(cell)
        try:
            config = replace(compose([*parsed.overrides, *cell], conf), outputs=str(folder))
            runs[cell] = finished(folder) or performed(planned(config, parsed.bytes), folder)
        except (ValueError, RuntimeError) as error:
            left_out[cell] = str(error)
            print(f"left out {' '.join(cell)}: {error}", file=sys.stderr)
    if not runs:
        raise ValueError("none of the combinations can run")
    equal = "equal rounds" if parsed.bytes is None else f"at most {parsed.bytes:,.0f} bytes each"
    title = f"{len(runs)} runs, {equal}"
    for name, text in (
        ("results.csv", comparison.tidy(runs)),
        ("report.html", comparison.page(title, runs, left_out)),
    ):
        part = parsed.out / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(parsed.out / name)
        print(f"wrote {parsed.out / name}")
    return 0


def slug(cell: tuple[str, ...]) -> str:
    """A cell as a folder's name."""
    return "".join(c if c.isalnum() or c in "=._-" else "_" for c in ",".join(cell))


def finished(folder: Path) -> "Run | None":
    """The run that is there already, if it came to its end."""
    from fedtuners.results import read_run

    latest = folder / "latest"
    return read_run(str(latest)) if (latest / "summary.json").is_file() else None


def planned(config: "Config", budget: float | None) -> "Config":
    """The configuration, with as many rounds as the budget allows. Raises ValueError."""
    from fedtuners.cli.plan import examine
    from fedtuners.planning import read_base

    base, nodes = read_base(config), config.federation.clients

    def total(rounds: int) -> int:
        asked = replace(config, federation=replace(config.federation, rounds=rounds))
        plan, problems = examine(asked, base, nodes, memory=False)
        if plan is None or problems:
            raise ValueError("; ".join(problems))
        return plan.bytes["total"]

    one, two = total(1), total(2)
    if budget is None:
        return config
    if one > budget:
        raise ValueError(f"one round takes {one:,} bytes, more than --bytes {budget:,.0f}")
    rounds = 1 + int((budget - one) // (two - one))
    return replace(config, federation=replace(config.federation, rounds=rounds))


def performed(config: "Config", folder: Path) -> "Run":
    """Run one federation in this process, with client state that does not outlive it."""
    from client_app import handlers
    from fedtuners.results import read_run
    from server_app.local import InProcessGrid
    from server_app.run import run

    before = os.environ.get("FEDTUNERS_STATE")
    with tempfile.TemporaryDirectory() as state:
        os.environ["FEDTUNERS_STATE"] = state
        try:
            run(config, InProcessGrid(config.federation.clients, handlers.answer), folder.name)
        finally:
            os.environ.pop("FEDTUNERS_STATE")
            if before is not None:
                os.environ["FEDTUNERS_STATE"] = before
    return read_run(str(folder / "latest"))
