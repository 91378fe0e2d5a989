"""Many runs as tables: a row per run, means over seeds, equal bytes, paired differences."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from statistics import fmean, stdev
from typing import Any

from fedtuners.cells import Cell, label, part
from fedtuners.paired import paired
from fedtuners.report import scores_by_bytes, table
from fedtuners.results import Run

Runs = Mapping[Cell, Run]
Settings = dict[Cell, dict[Cell, dict[Cell, Run]]]  # runs by setting, method and seed
Score = Callable[[Run], float | None]
COUNTED = ("up_per_client_round", "down_per_client_round", "initialisation", "total")
ABOUT = ("metric", "initial", "final", "rounds", "clients", "trainable_parameters")


@dataclass(frozen=True)
class Table:
    """A table before it is HTML or Markdown."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""

    def html(self) -> str:
        """As a part of a page."""
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        return f"<h2>{escape(self.title)}</h2>{note}{table(self.head, self.rows)}"

    def markdown(self) -> str:
        """As a part of a Markdown text."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        cells = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
        return "\n".join([f"## {self.title}", "", *([self.note, ""] if self.note else []), *cells])


def within(run: Run, budget: float) -> float | None:
    """The last score that was measured before more than `budget` bytes had been sent."""
    found = [score for sent, score in scores_by_bytes(run) if sent * 1e6 <= budget]
    return found[-1] if found else None


def records(runs: Runs, budgets: Sequence[float] = ()) -> list[dict[str, Any]]:
    """A row per run: what was varied, its scores, its bytes, its seconds and its folder."""
    keys = dict.fromkeys(word.partition("=")[0] for cell in runs for word in cell)
    found = []
    for cell, run in runs.items():
        varied = dict.fromkeys(keys, "") | dict(word.split("=", 1) for word in cell)
        said = run.summary
        found.append(
            varied
            | {name: said[name] for name in ABOUT}
            | {f"within_{budget:.0f}": within(run, budget) for budget in budgets}
            | {name: said["bytes"][name] for name in COUNTED}
            | {"seconds": said["seconds"]["total"], "folder": run.path.name}
        )
    return found


def tidy(rows: Sequence[Mapping[str, Any]]) -> str:
    """Records as CSV."""
    written = io.StringIO()
    lines = csv.DictWriter(written, list(rows[0]), lineterminator="\n")
    lines.writeheader()
    lines.writerows(rows)
    return written.getvalue()


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Records as Parquet; what was varied by numbers is a column of numbers."""
    import pyarrow
    from pyarrow import parquet as format_

    written = io.BytesIO()
    columns = {name: _numbers([row[name] for row in rows]) for name in rows[0]}
    format_.write_table(pyarrow.table(columns), written)
    return written.getvalue()


def _numbers(values: Sequence[Any]) -> list[Any]:
    """Words as numbers where all are, the empty ones as None; anything else as it is."""
    if not all(isinstance(value, str) for value in values):
        return list(values)
    for number in (int, float):
        try:
            return [number(value) if value else None for value in values]
        except ValueError:
            continue
    return [value or None for value in values]


def settings(runs: Runs) -> Settings:
    """The runs by setting, method and seed."""
    found: Settings = {}
    for cell, run in runs.items():
        methods = found.setdefault(part(cell, "setting"), {})
        methods.setdefault(part(cell, "method"), {})[part(cell, "seed")] = run
    return found


def means(
    setting: Cell, methods: Mapping[Cell, Mapping[Cell, Run]], budgets: Sequence[float]
) -> Table:
    """A setting's methods: mean and standard deviation over the seeds, and what they took."""
    metric = next(iter(next(iter(methods.values())).values())).summary["metric"]
    at = [f"within {budget / 1e6:g} MB" for budget in budgets]
    took = ("rounds", "trained numbers", "start MB", "MB in all")
    head = ("", "runs", f"{metric}, mean ± sd", *at, *took)
    rows = [_row(label(method), list(group.values()), budgets) for method, group in methods.items()]
    return Table(f"Means over seeds: {label(setting)}", head, rows)


def _row(name: str, runs: Sequence[Run], budgets: Sequence[float]) -> list[object]:
    said = [run.summary for run in runs]
    size = {key: fmean(one["bytes"][key] for one in said) / 1e6 for key in COUNTED}
    return [
        *(name, len(runs), spread([float(one["final"]) for one in said])),
        *(spread([within(run, budget) for run in runs]) for budget in budgets),
        "–".join(str(n) for n in sorted({one["rounds"] for one in said})),
        *(f"{said[0]['trainable_parameters']:,}", f"{size['initialisation']:.3f}"),
        f"{size['total']:.3f}",
    ]


def spread(values: Sequence[float | None]) -> str:
    """mean ± sd; a dash where a run has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    return f"{fmean(known):.3f}" + (f" ± {stdev(known):.3f}" if len(known) > 1 else "")


def differences(what: str, runs: Runs, score: Score) -> Table:
    """Every method against the first one, paired by seed: in each setting, and over all of them."""
    split = settings(runs)
    first, *others = dict.fromkeys(part(cell, "method") for cell in runs)
    rows: list[list[object]] = []
    for method in others:
        gaps = {s: _gaps(methods, method, first, score) for s, methods in split.items()}
        rows += [_test(method, label(s), list(gap.values())) for s, gap in gaps.items() if gap]
        shared = set.intersection(*map(set, gaps.values()))
        if len(gaps) > 1 and shared:
            each = [fmean(gap[seed] for gap in gaps.values()) for seed in sorted(shared)]
            rows.append(_test(method, "mean of the settings", each))
    note = (
        f"A method's score minus that of {label(first)}. Paired are runs of the same setting and "
        "seed: the same training rows, split and test rows. The mean of the settings is taken seed "
        "by seed, so a pair is a seed there too. Interval and p are Student's, from three pairs "
        "on; p is not corrected for the number of rows."
    )
    head = ("", "setting", "pairs", "difference", "95 % interval", "p")
    return Table(f"Paired differences: {what}", head, rows, note)


def _gaps(
    methods: Mapping[Cell, Mapping[Cell, Run]], method: Cell, first: Cell, score: Score
) -> dict[Cell, float]:
    """By seed, the score of `method` minus that of `first`, where both have one."""
    found = {}
    reference = methods.get(first, {})
    for seed, run in methods.get(method, {}).items():
        ours = score(run)
        theirs = score(reference[seed]) if seed in reference else None
        if ours is not None and theirs is not None:
            found[seed] = ours - theirs
    return found


def _test(method: Cell, setting: str, gaps: Sequence[float]) -> list[object]:
    told = paired(gaps)
    interval = "" if told.low is None else f"{told.low:+.3f} … {told.high:+.3f}"
    p = "" if told.p is None else f"{told.p:.3f}"
    return [label(method), setting, told.pairs, f"{told.mean:+.3f}", interval, p]


def paired_tables(runs: Runs, budgets: Sequence[float]) -> list[Table]:
    """The paired differences of the last scores, and of those within each budget."""
    found = [differences("last score", runs, lambda run: float(run.summary["final"]))]
    for budget in budgets:
        what = f"last score within {budget / 1e6:g} MB"
        found.append(differences(what, runs, partial(within, budget=budget)))
    return [one for one in found if one.rows]


def markdown(title: str, runs: Runs, budgets: Sequence[float]) -> str:
    """The tables as a Markdown text."""
    found = [means(s, methods, budgets) for s, methods in settings(runs).items()]
    parts = [f"# {title}", *(one.markdown() for one in [*found, *paired_tables(runs, budgets)])]
    return "\n\n".join(parts) + "\n"
