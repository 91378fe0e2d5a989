"""A comparison as one page: tables, score by round and by bytes, clients alone, the split."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from statistics import fmean, stdev

from fedtuners.cells import Cell, baseline_of, label
from fedtuners.comparison import Runs, Table, means, paired_tables, settings
from fedtuners.plots import Bands, Lines, bars, figure
from fedtuners.report import document, scores, scores_by_bytes
from fedtuners.results import Run
from fedtuners.tasks import describe, load, partition


def page(
    title: str, runs: Runs, left_out: Mapping[Cell, str], budgets: Sequence[float] = ()
) -> str:
    """The report: each setting's means and plots, the paired differences, what is left out."""
    body = [f"<h1>{escape(title)}</h1>"]
    for setting, methods in settings(runs).items():
        body += [means(setting, methods, budgets).html(), *_figures(methods)]
    body += [one.html() for one in paired_tables(runs, budgets)]
    if left_out:
        rows = [(" ".join(cell), why) for cell, why in left_out.items()]
        body.append(Table("Left out", ("", "why"), rows).html())
    return document(title, body)


def _figures(methods: Mapping[Cell, Mapping[Cell, Run]]) -> Iterator[str]:
    """A setting's plots: score by round and against bytes, clients alone, who has which rows."""
    groups = {label(method): list(runs.values()) for method, runs in methods.items()}
    alone = {label(m): list(runs.values()) for m, runs in methods.items() if baseline_of(m)}
    federated = {name: runs for name, runs in groups.items() if name not in alone}
    run = next(iter(groups.values()))[0]
    metric = str(run.summary["metric"])
    levels = {name: fmean(r.summary["final"] for r in runs) for name, runs in alone.items()}
    by_round, bands = averaged({n: [scores(r) for r in runs] for n, runs in federated.items()})
    yield figure(by_round, "round", metric, bands, levels)
    by_bytes, bands = averaged(
        {n: [scores_by_bytes(r) for r in runs] for n, runs in federated.items()}
    )
    yield figure(by_bytes, "megabytes sent, all clients, both ways", metric, bands, levels)
    each, bands = averaged(
        {n: [client_scores(r) for r in runs] for n, runs in alone.items() if client_scores(runs[0])}
    )
    if each:
        yield figure(each, "clients alone, from the lowest score up", metric, bands)
    column, split = split_of(run)
    yield bars(split, "client", f"training rows, by {column}" if column else "training rows")


def client_scores(run: Run) -> list[tuple[float, float]]:
    """(1, 2, …, score) of the clients that were scored one by one, the lowest first."""
    metric = run.summary["metric"]
    found = sorted(line[metric] for line in run.lines if "client" in line and metric in line)
    return [(float(place), float(score)) for place, score in enumerate(found, 1)]


def split_of(run: Run) -> tuple[str | None, dict[str, list[int]]]:
    """The column that tells a run's rows apart, and the rows of each client by its values."""
    config = run.config
    data, clients = config.data, config.federation.clients
    rows = load(data, config.seed).train
    parts = [partition(rows, config.partition, clients, client) for client in range(clients)]
    asked = (config.partition.column, data.group, data.label)
    column = next((name for name in asked if name in rows.column_names), None)
    counts = describe(parts, column)
    sizes = counts.pop("rows")
    return column, counts or {"rows": sizes}


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
            deviations = [stdev([y for _, y in at]) for at in points]
            bands[name] = [
                (x, y - sd, y + sd) for (x, y), sd in zip(lines[name], deviations, strict=True)
            ]
    return lines, bands
