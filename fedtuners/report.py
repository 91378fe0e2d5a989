"""Runs as one HTML page that needs nothing else: plots as inline SVG, tables, configurations.

It reads on a phone, by day and by night, and prints. Everything that came from a run is escaped.
"""

from collections.abc import Iterable, Sequence
from html import escape
from statistics import fmean

from omegaconf import OmegaConf

from fedtuners.plots import figure
from fedtuners.results import Run

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
figure { margin: 0 0 1rem; background: #fff; border-radius: 6px; max-width: 40rem; }
figure svg { width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; width: fit-content; max-width: 100%; margin-bottom: 1rem;
  background: /* a shadow where there is more */
  linear-gradient(to right, Canvas .8rem, #0000) 0 0 / 2rem 100% no-repeat local,
  linear-gradient(to left, Canvas .8rem, #0000) 100% 0 / 2rem 100% no-repeat local,
  linear-gradient(to right, #8888, transparent) 0 0 / .7rem 100% no-repeat,
  linear-gradient(to left, #8888, transparent) 100% 0 / .7rem 100% no-repeat; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .2rem .5rem; border-bottom: 1px solid #8886; text-align: right; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
@media (max-width: 40rem) { table { font-size: .85rem; } th, td { padding: .2rem .4rem; } }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
@media print {
  body { max-width: none; font-size: 10pt; }
  details > pre { font-size: 7pt; }
  figure, table { break-inside: avoid; }
  .wide { overflow: visible; }
}
"""


def page(runs: Sequence[Run]) -> str:
    """The report of one or several runs."""
    names = unique_names(runs)
    title = f"Run {names[0]}" if len(runs) == 1 else f"{len(runs)} runs"
    metrics = {str(run.summary["metric"]) for run in runs}
    metric = metrics.pop() if len(metrics) == 1 else "score"
    by_round = {name: scores(run) for name, run in zip(names, runs, strict=True)}
    by_bytes = {name: scores_by_bytes(run) for name, run in zip(names, runs, strict=True)}
    body = [
        f"<h1>{escape(title)}</h1>",
        facts(names, runs),
        "<h2>Score by round</h2>",
        figure(by_round, "round", metric),
        "<h2>Score against bytes</h2>",
        figure(by_bytes, "megabytes sent, all clients, both ways", metric),
    ]
    for name, run in zip(names, runs, strict=True):
        body += about(name, run, alone=len(runs) == 1)
    return document(title, body)


def document(title: str, body: Iterable[str]) -> str:
    """A whole page around its parts."""
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def unique_names(runs: Sequence[Run]) -> list[str]:
    """The folders' names, numbered where two are alike."""
    names: list[str] = []
    for run in runs:
        same = sum(name.split(" #")[0] == run.path.name for name in names)
        names.append(f"{run.path.name} #{same + 1}" if same else run.path.name)
    return names


OVERVIEW = (
    *("run", "strategy", "adapter", "metric", "before", "after", "trained numbers"),
    *("rounds", "clients", "MB in all", "seconds"),
)


def facts(names: Sequence[str], runs: Sequence[Run]) -> str:
    """What each run came to: a row a run, or of a single one a row a fact."""
    rows = [overview(name, run) for name, run in zip(names, runs, strict=True)]
    if len(rows) > 1:
        return table(OVERVIEW, rows)
    return table(("", ""), zip(OVERVIEW[1:], rows[0][1:], strict=True))


def overview(name: str, run: Run) -> list[object]:
    """A run's row of the first table."""
    about = run.summary
    return [
        *(name, about["strategy"], about["adapter"], about["metric"]),
        *(f"{about['initial']:.4f}", f"{about['final']:.4f}", f"{about['trainable_parameters']:,}"),
        *(about["rounds"], about["clients"], f"{about['bytes']['total'] / 1e6:.3f}"),
        f"{about['seconds']['total']:.1f}",
    ]


def about(name: str, run: Run, alone: bool) -> list[str]:
    """What is said of one run: its clients, what went wrong, its configuration."""
    last = max((line["round"] for line in run.rounds), default=0)
    clients = run.clients(last)
    heading = "" if alone else f" — {escape(name)}"
    parts = [f"<h2>Clients in round {last}{heading}</h2>"]
    columns = ("loss", "num-examples", "tokens", "seconds", "epsilon", "up", "down")
    present = [key for key in columns if any(key in line for line in clients)]
    rows = [[line["client"], *(_number(line.get(key, "")) for key in present)] for line in clients]
    parts.append(table(["client", *(PLAIN.get(key, key) for key in present)], rows))
    losses = client_losses(run)
    if len(losses) <= 30:
        parts.append(figure(losses, "round", "training loss of each client"))
    problems = [
        [line["round"], client, why]
        for line in run.rounds
        for client, why in line.get("problems", {}).items()
    ]
    if problems:
        parts += [f"<h2>Answers that did not count{heading}</h2>"]
        parts.append(table(["round", "client", "why"], problems))
    config = OmegaConf.to_yaml(OmegaConf.structured(run.config))
    parts.append(f"<h2>Configuration{heading}</h2>")
    parts.append(f"<details><summary>config.yaml</summary><pre>{escape(config)}</pre></details>")
    return parts


PLAIN = {"num-examples": "examples", "up": "bytes up", "down": "bytes down"}


def scores(run: Run) -> list[tuple[float, float]]:
    """(round, score) of the evaluated rounds."""
    metric = run.summary["metric"]
    return [(line["round"], line[metric]) for line in run.rounds if metric in line]


def scores_by_bytes(run: Run) -> list[tuple[float, float]]:
    """(megabytes sent until then, score), the start's bytes at round 0."""
    sent = float(run.summary["bytes"]["initialisation"])
    found = []
    metric = run.summary["metric"]
    for line in run.rounds:
        sent += sum(client["up"] + client["down"] for client in run.clients(line["round"]))
        if metric in line:
            found.append((sent / 1e6, line[metric]))
    return found


def client_losses(run: Run) -> dict[str, list[tuple[float, float]]]:
    """(round, training loss) by client."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in run.lines:
        if "client" in line and "loss" in line:
            found.setdefault(f"client {line['client']}", []).append((line["round"], line["loss"]))
    return found


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table that scrolls sideways where the page is narrow."""
    cells = "".join(f"<th>{escape(str(cell))}</th>" for cell in head)
    lines = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody>'
        "</table></div>"
    )


def _number(value: object) -> str:
    if isinstance(value, list):
        return f"{fmean(value):.4g}" if value else ""
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if value != "" else ""
