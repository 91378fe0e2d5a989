"""Many runs as one table and one page: means over the seeds, with their standard deviations."""

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean, stdev

from fedtuners.report import Bands, Lines, document, figure, scores, scores_by_bytes, table
from fedtuners.results import Run

Cell = tuple[str, ...]  # the overrides by which a run differs from the others
COUNTED = ("up_per_client_round", "down_per_client_round", "initialisation", "total")


def cells(over: Sequence[str]) -> list[Cell]:
    """Every combination of `key=a,b,c` words. Raises ValueError for one without choices."""
    for word in over:
        key, _, values = word.partition("=")
        if not key or not all(values.split(",")):
            raise ValueError(f"--over {word}: write key=first,second")
    axes = [word.partition("=") for word in over]
    return [
        tuple(f"{key}={value}" for (key, _, _), value in zip(axes, chosen, strict=True))
        for chosen in product(*(values.split(",") for _, _, values in axes))
    ]


def group_of(cell: Cell) -> str:
    """What a cell shares with those that differ in the seed alone."""
    return " ".join(word for word in cell if not word.startswith("seed=")) or "all"


def tidy(runs: Mapping[Cell, Run]) -> str:
    """CSV with a row per run."""
    written = io.StringIO()
    lines = csv.writer(written)
    keys = [word.partition("=")[0] for word in next(iter(runs), ())]
    about = ("metric", "initial", "final", "rounds", "clients", "trainable_parameters")
    lines.writerow([*keys, *about, *COUNTED, "seconds", "folder"])
    for cell, run in runs.items():
        said = run.summary
        lines.writerow(
            [word.partition("=")[2] for word in cell]
            + [said[name] for name in about]
            + [said["bytes"][name] for name in COUNTED]
            + [said["seconds"]["total"], run.path.name]
        )
    return written.getvalue()


def page(title: str, runs: Mapping[Cell, Run], left_out: Mapping[Cell, str]) -> str:
    """The report: the table of means, score by round and against bytes, what was left out."""
    groups: dict[str, list[Run]] = {}
    for cell, run in runs.items():
        groups.setdefault(group_of(cell), []).append(run)
    metric = str(next(iter(runs.values())).summary["metric"]) if runs else "score"
    by_round = averaged({name: [scores(run) for run in found] for name, found in groups.items()})
    by_bytes = averaged(
        {name: [scores_by_bytes(run) for run in found] for name, found in groups.items()}
    )
    head = ("", "runs", f"{metric}, mean ± sd", "rounds", "trained numbers", "MB in all")
    body = [
        f"<h1>{title}</h1>",
        table(head, [row(name, found) for name, found in groups.items()]),
        "<h2>Score by round</h2>",
        figure(by_round[0], "round", metric, by_round[1]),
        "<h2>Score against bytes</h2>",
        figure(by_bytes[0], "megabytes sent, all clients, both ways", metric, by_bytes[1]),
    ]
    if left_out:
        body += [
            "<h2>Left out</h2>",
            table(("", "why"), [(" ".join(c), w) for c, w in left_out.items()]),
        ]
    return document(title, body)


def row(name: str, runs: Sequence[Run]) -> list[object]:
    """A group's row: the last score over its runs, and what they took."""
    final = [float(run.summary["final"]) for run in runs]
    spread = f" ± {stdev(final):.4f}" if len(final) > 1 else ""
    total = fmean(run.summary["bytes"]["total"] for run in runs)
    first = runs[0].summary
    rounds = "–".join(str(n) for n in sorted({run.summary["rounds"] for run in runs}))
    trained = f"{first['trainable_parameters']:,}"
    return [name, len(runs), f"{fmean(final):.4f}{spread}", rounds, trained, f"{total / 1e6:.3f}"]


def averaged(
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
) -> tuple[Lines, Bands]:
    """Means of a group's curves, point by point, and the bands one standard deviation around."""
    lines: dict[str, list[tuple[float, float]]] = {}
    bands: dict[str, list[tuple[float, float, float]]] = {}
    for name, group in curves.items():
        points = list(zip(*group, strict=False))  # as far as all runs of the group go
        lines[name] = [(fmean(x for x, _ in at), fmean(y for _, y in at)) for at in points]
        if len(group) > 1:
            spread = [stdev([y for _, y in at]) for at in points]
            bands[name] = [
                (x, y - sd, y + sd) for (x, y), sd in zip(lines[name], spread, strict=True)
            ]
    return lines, bands
