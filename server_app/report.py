"""What a run says of itself: a line per round, metrics.jsonl, a tracker, a plot, the summary."""

import time
from collections.abc import Mapping
from logging import INFO, WARNING
from statistics import fmean
from typing import Any

from flwr.common import log

from server_app.folder import RunFolder
from server_app.track import Tracker
from strategies.exchange import Traffic
from strategies.updates import RoundReport

TOLD = {"loss", "epsilon"}  # numbers of a client that are worth a curve


class Reporter:
    """Observes the rounds of one run and writes its folder."""

    def __init__(
        self,
        folder: RunFolder,
        metric: str,
        traffic: Traffic,
        tracker: Tracker,
        spent: float = 0.0,
    ) -> None:
        self.folder, self.metric, self.traffic = folder, metric, traffic
        self.tracker = tracker
        self.started = time.monotonic() - spent  # on the start, and before an interruption
        self.seconds = {"training": 0.0, "evaluation": 0.0}
        self.by_round: dict[int, float] = {}
        self.restore()

    @property
    def elapsed(self) -> float:
        """Seconds spent on the run, the start and what preceded an interruption included."""
        return time.monotonic() - self.started

    def restore(self) -> None:
        """Take up the rounds that an interrupted run already wrote."""
        for line in self.folder.read_metrics():
            if "client" not in line:
                self.by_round |= {line["round"]: line[self.metric]} if self.metric in line else {}
                self.seconds["training"] += line["training_seconds"]
                self.seconds["evaluation"] += line["evaluation_seconds"]

    def __call__(self, report: RoundReport) -> None:
        """Record one finished round."""
        self.seconds["training"] += report.train_seconds
        self.seconds["evaluation"] += report.evaluate_seconds
        if self.metric in report.metrics:
            self.by_round[report.round] = float(report.metrics[self.metric])
        lines = [*self._client_lines(report), self._round_line(report)]
        self.folder.append_metrics(lines)
        try:
            self.tracker.record(report.round, _curves(report))
        except Exception as error:  # a service that is away is no reason to lose a round
            log(WARNING, "round %s went to the run folder alone: %s", report.round, error)
        log(INFO, "%s", self._sentence(report))

    def _client_lines(self, report: RoundReport) -> list[dict[str, Any]]:
        return [
            {"round": report.round, "client": update.client}
            | update.metrics
            | {
                "up": self.traffic.up[report.round].get(update.client, 0),
                "down": self.traffic.down[report.round].get(update.client, 0),
            }
            for update in report.updates
        ]

    def _round_line(self, report: RoundReport) -> dict[str, Any]:
        return (
            {"round": report.round}
            | report.metrics
            | report.together
            | {
                "replies": len(report.updates),
                "problems": {str(client): why for client, why in report.problems.items()},
                "training_seconds": round(report.train_seconds, 3),
                "evaluation_seconds": round(report.evaluate_seconds, 3),
            }
        )

    def _sentence(self, report: RoundReport) -> str:
        score = report.metrics.get(self.metric)
        measured = "" if score is None else f", {self.metric} {score:.3f}"
        if report.round == 0:
            return f"round 0: before training{measured} ({report.evaluate_seconds:.1f} s)"
        return (
            f"round {report.round}: {len(report.updates)} clients{_told(report)}{measured} "
            f"({report.train_seconds:.1f} s training, {report.evaluate_seconds:.1f} s evaluation)"
        )

    def finish(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Write the plot and summary.json; returns the summary."""
        rounds = sorted(self.by_round)
        values = [self.by_round[number] for number in rounds]
        summary = dict(about) | {
            "metric": self.metric,
            "initial": values[0],
            "final": values[-1],
            "by_round": {str(number): self.by_round[number] for number in rounds},
            "bytes": count(self.traffic),
            "seconds": {"total": round(self.elapsed, 2)}
            | {name: round(value, 2) for name, value in self.seconds.items()},
        }
        plot(self.folder, self.metric, self.by_round)
        self.folder.write_json("summary.json", summary)
        totals = {"final": values[-1], "bytes": summary["bytes"]["total"]}
        try:
            self.tracker.close(totals | {"seconds": summary["seconds"]["total"]})
        except Exception as error:
            log(WARNING, "the tracker did not take the end of the run: %s", error)
        return summary


def _curves(report: RoundReport) -> dict[str, float]:
    """A round's numbers that are worth a curve, by name."""
    found = {f"global/{name}": float(value) for name, value in report.metrics.items()}
    for update in report.updates:
        for name in sorted(TOLD & update.metrics.keys()):
            found[f"client/{update.client}/{name}"] = float(update.metrics[name])
    return found


def _told(report: RoundReport) -> str:
    """The mean of what the clients say of their training: a loss, or a private one's largest ε."""
    everybody = [update.metrics for update in report.updates] + [report.together]
    losses = [float(metrics["loss"]) for metrics in everybody if "loss" in metrics]
    costs = [float(u.metrics["epsilon"]) for u in report.updates if "epsilon" in u.metrics]
    loss = f", loss {fmean(losses):.3f}" if losses else ""
    return loss + (f", ε {max(costs):.2f}" if costs else "")


def count(traffic: Traffic) -> dict[str, int]:
    """Bytes by purpose; the rounds' are means over the clients and rounds that took part."""

    def mean(direction: dict[int, dict[int, int]]) -> int:
        sizes = [size for r, clients in direction.items() if r > 0 for size in clients.values()]
        return round(fmean(sizes)) if sizes else 0

    def total(direction: dict[int, dict[int, int]], rounds: set[int]) -> int:
        return sum(sum(direction[r].values()) for r in rounds if r in direction)

    rounds = set(traffic.down) | set(traffic.up)
    return {
        "up_per_client_round": mean(traffic.up),
        "down_per_client_round": mean(traffic.down),
        "initialisation": total(traffic.down, {0}) + total(traffic.up, {0}),
        "total": total(traffic.down, rounds) + total(traffic.up, rounds),
    }


def plot(folder: RunFolder, metric: str, by_round: Mapping[int, float]) -> None:
    """Draw the metric by round into metric.png."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    rounds = sorted(by_round)
    axes.plot(rounds, [by_round[number] for number in rounds], marker="o")
    axes.set_xlabel("round")
    axes.set_ylabel(metric.replace("_", " "))
    axes.set_xticks(rounds)
    axes.grid(alpha=0.3)
    figure.savefig(folder.path / "metric.png", dpi=150)
