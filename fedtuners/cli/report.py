"""One self-contained HTML page of one or several runs: plots, tables, configurations.

fedtuners report latest
fedtuners report outputs/2026-* --out comparison.html
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `fedtuners report`."""
    parser.add_argument("runs", nargs="+", help="run folders, names in the outputs folder, latest")
    parser.add_argument("--out", type=Path, help="default: report.html, in the folder of a run")


def main(parsed: argparse.Namespace) -> int:
    """Write the page; returns the exit code."""
    from fedtuners.cli.output import write
    from fedtuners.report import page
    from fedtuners.results import read_run

    runs = [read_run(name) for name in parsed.runs]
    default = runs[0].path / "report.html" if len(runs) == 1 else Path("report.html")
    out: Path = (parsed.out or default).expanduser()
    write(out, page(runs))
    print(f"wrote {out}")
    return 0
