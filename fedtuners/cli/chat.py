"""Talk to a run's model in the terminal: the base, the adapter, or both side by side.

    fedtuners chat latest --side adapter

A line is one text; an empty line or the end of input ends the talk. Where the run uses a chat
template, earlier turns are remembered, for each side its own.
"""

import argparse
import sys

from fedtuners.cli.generate import add_options, answer, check_options, chosen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `fedtuners chat`."""
    parser.add_argument("run", help="a run: its folder, its name in the outputs folder, or latest")
    add_options(parser)


def main(parsed: argparse.Namespace) -> int:
    """Load the run, answer line after line; returns the exit code."""
    from fedtuners import talk
    from fedtuners.results import open_model, read_run

    check_options(parsed)
    data = read_run(parsed.run).config.data
    if data.task == "classification":
        raise ValueError(f"{parsed.run} classifies: use fedtuners generate")
    if len(talk.needed(data)) > 1:
        columns = ", ".join(talk.needed(data))
        raise ValueError(f"{parsed.run} asks by the columns {columns}: use fedtuners generate")
    model = open_model(parsed.run, None, parsed.device)
    sides = chosen(model, parsed.side)
    told: dict[str, list[tuple[str, str]]] = {side: [] for side in sides}
    while line := _line():
        for side in sides:
            if len(sides) > 1:
                print(f"{side}: ", end="", flush=True)
            said = answer(model, side, talk.fields([line], data), told[side], parsed)
            if data.chat:
                told[side] += [("user", line), ("assistant", said)]
    return 0


def _line() -> str:
    if sys.stdin.isatty():
        print("> ", end="", flush=True)
    return sys.stdin.readline().strip()
