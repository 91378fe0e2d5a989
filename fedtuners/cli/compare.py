"""Compare strategies, adapters, seeds and splits, under equal rounds or equal bytes.

    fedtuners compare --over strategy=fed_sb --over seed=0,1,2 --baselines federation.rounds=10
    fedtuners compare --case "strategy=fed_sb adapter.rank=16" \\
        --case "strategy=ffa_lora adapter=lora adapter.rank=2" --over partition=iid,dirichlet \\
        --over seed=0,1,2 --bytes 8e6

Every federation runs in this process, one after another, each in a folder of its own below --out;
one that is there and finished is not run again, so an interrupted comparison goes on where it was.
What cannot run is left out, and said. results.csv and results.parquet have a row per run;
results.md and report.html the means over the seeds with their standard deviations, and each
method's paired difference to the first.

Equal bytes: --bytes gives every run the rounds that so many bytes allow. --within instead reads, in
runs of equal rounds, the last score that was measured before so many bytes had been sent.

Baselines: `strategy=alone` trains each client by itself, `strategy=centralised` all rows in one
loop, both with the optimiser steps that the federation's clients take; --baselines adds both for
every adapter and setting.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from fedtuners.cli.check import check_writable
from fedtuners.cli.output import write
from fedtuners.cli.project import add_app, enter

if TYPE_CHECKING:
    from fedtuners.cells import Cell
    from fedtuners.config import Config
    from fedtuners.results import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `fedtuners compare`."""
    parser.add_argument("overrides", nargs="*", help="Hydra overrides that all runs share")
    vary, case = "what to vary; may be repeated", "overrides that belong together; may be repeated"
    parser.add_argument("--over", action="append", default=[], metavar="KEY=A,B", help=vary)
    parser.add_argument("--case", action="append", default=[], metavar='"KEY=A …"', help=case)
    parser.add_argument("--baselines", action="store_true", help="also alone and centralised")
    parser.add_argument("--bytes", type=size, metavar="N", help="rounds as N bytes in all allow")
    within = "also the last scores within so many bytes"
    parser.add_argument("--within", type=sizes, default=[], metavar="N,N", help=within)
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="(comparison)")
    add_app(parser)


def size(text: str) -> float:
    """A number of bytes, `2e6`."""
    if not 0 < float(text) < inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of bytes above 0")
    return float(text)


def sizes(text: str) -> list[float]:
    """The numbers of bytes in `2e6,8e6`."""
    return [size(word) for word in text.split(",")]


def main(parsed: argparse.Namespace) -> int:
    """Run what is missing, write the tables and the page; returns the exit code."""
    conf = enter(parsed.app)
    from fedtuners.cells import baseline_of, cells, with_baselines

    if not parsed.over and not parsed.case:
        raise ValueError("nothing to compare: give --over key=first,second or --case")
    found = cells(parsed.over, parsed.case)
    found = with_baselines(found) if parsed.baselines else found
    if parsed.bytes is not None and any(map(baseline_of, found)):
        raise ValueError("a baseline sends no bytes that --bytes could count: use --within instead")
    out = parsed.out.expanduser().absolute()
    check_writable(out / "runs")
    configs, left_out = planned(found, parsed.overrides, conf, parsed.bytes, out / "runs")
    runs = run_all(configs, left_out)
    if not runs:
        reasons = "; ".join(dict.fromkeys(left_out.values()))
        raise ValueError(f"none of the combinations can run: {reasons}")
    for cell, why in left_out.items():
        print(f"left out {' '.join(cell)}: {why}", file=sys.stderr)
    equal = "equal rounds" if parsed.bytes is None else f"at most {parsed.bytes:,.0f} bytes each"
    write_all(out, f"{len(runs)} runs, {equal}", runs, left_out, parsed.within)
    print(f"wrote {out}/results.csv, results.parquet, results.md and report.html")
    return 0


def run_all(configs: Mapping["Cell", "Config"], left_out: dict["Cell", str]) -> dict["Cell", "Run"]:
    """The runs that are there, looked at before any is started, and those that are missing."""
    from fedtuners.cli.perform import performed

    earlier = {cell: finished(cell, config) for cell, config in configs.items()}
    runs: dict[Cell, Run] = {}
    for cell, config in configs.items():
        try:
            runs[cell] = earlier[cell] or performed(cell, config)
        except (ValueError, RuntimeError) as error:
            left_out[cell] = str(error)
    return runs


def planned(
    found: Sequence["Cell"], shared: Sequence[str], conf: Path, budget: float | None, runs: Path
) -> tuple[dict["Cell", "Config"], dict["Cell", str]]:
    """The configuration of each cell that can run, and why the others cannot."""
    from fedtuners.cells import baseline_of
    from fedtuners.config import compose

    configs: dict[Cell, Config] = {}
    left_out: dict[Cell, str] = {}
    for cell in found:
        baseline = baseline_of(cell)
        words = [word for word in (*shared, *cell) if word != f"strategy={baseline}"]
        try:
            config = replace(compose(words, conf), outputs=str(runs / slug(cell)))
            if baseline is None:
                sent = bytes_by_rounds(config)
                config = config if budget is None else budgeted(config, sent, budget)
            configs[cell] = config
        except ValueError as error:
            left_out[cell] = str(error)
    return configs, left_out


def slug(cell: "Cell") -> str:
    """A cell as a folder's name."""
    return "".join(c if c.isalnum() or c in "=._-" else "_" for c in ",".join(cell))


def budgeted(config: "Config", sent: Callable[[int], int], budget: float) -> "Config":
    """The configuration with as many rounds as the budget allows; ValueError for not even one."""
    if sent(1) > budget:
        raise ValueError(f"one round takes {sent(1):,} bytes, more than --bytes {budget:,.0f}")
    rounds = largest(lambda rounds: sent(rounds) <= budget)
    return replace(config, federation=replace(config.federation, rounds=rounds))


def bytes_by_rounds(config: "Config") -> Callable[[int], int]:
    """What so many rounds send in all; ValueError says why not even one can run."""
    from fedtuners.cli.plan import examine
    from fedtuners.planning import read_base

    base, nodes = read_base(config), config.federation.clients

    @cache
    def sent(rounds: int) -> int:
        planned = replace(config, federation=replace(config.federation, rounds=rounds))
        plan, problems = examine(planned, base, nodes, memory=False)
        if plan is None or problems:
            raise ValueError("; ".join(problems))
        return plan.bytes["total"]

    sent(1)
    return sent


def largest(fits: Callable[[int], bool]) -> int:
    """The largest n that fits, where 1 does and nothing above one that does not."""
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def finished(cell: "Cell", config: "Config") -> "Run | None":
    """The run that is there already, if it came to its end.

    Raises:
        ValueError: when it ran with other settings, which one table must not mix.
    """
    from fedtuners.results import read_run

    latest = Path(str(config.outputs)) / "latest"
    if not (latest / "summary.json").is_file():
        return None
    run = read_run(str(latest))
    if _settings(run.config) != _settings(config):
        raise ValueError(
            f"{latest.parent} holds a run of {' '.join(cell)} with other settings: choose another "
            "--out, or delete that folder"
        )
    return run


def _settings(config: "Config") -> str:
    """What decides a run's result: not where its numbers go, nor labels, which its rows may say."""
    from fedtuners.config import to_json

    same = replace(config, data=replace(config.data, labels=[]))
    return to_json(replace(same, outputs=None, resume=None, track={}))


def write_all(
    out: Path,
    title: str,
    runs: Mapping["Cell", "Run"],
    left_out: Mapping["Cell", str],
    budgets: Sequence[float],
) -> None:
    """The tables and the page, each file whole or not at all."""
    from fedtuners import comparison
    from fedtuners.comparison_page import page

    rows = comparison.records(runs, budgets)
    files: dict[str, str | bytes] = {
        "results.csv": comparison.tidy(rows),
        "results.parquet": comparison.parquet(rows),
        "results.md": comparison.markdown(title, runs, budgets),
        "report.html": page(title, runs, left_out, budgets),
    }
    for name, content in files.items():
        write(out / name, content)
