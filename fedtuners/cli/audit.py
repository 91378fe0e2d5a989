"""Audit privacy: canaries against the project's own DP-SGD, or membership in a finished run.

fedtuners audit                    clean and broken trainings: ε seen against ε claimed
fedtuners audit latest             how well the run's adapter tells its training rows apart
"""

import argparse
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from fedtuners.privacy.leakage import Membership


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `fedtuners audit`."""
    parser.add_argument("run", nargs="?", help="a run, or a folder with a PEFT adapter")
    parser.add_argument("--canaries", type=int, default=1000, help="of each training")
    parser.add_argument("--rows", type=int, default=500, help="of each side, for a run's score")
    parser.add_argument("--device", help="auto, cpu, cuda, … (default: the run's)")


def main(parsed: argparse.Namespace) -> int:
    """Print the table; 1 when a clean training is refuted or a broken one is not."""
    if parsed.run:
        found = score(parsed.run, parsed.rows, parsed.device)
        Console().print(
            f"membership in {parsed.run}: AUC [bold]{found.auc:.3f}[/bold] (.5 is guessing), "
            f"{found.found:.1%} of the members found at {found.false_alarms:.0%} false alarms"
        )
        return 0
    return canaries(parsed.canaries)


def canaries(count: int, console: Console | None = None) -> int:
    """Audit every training of fedtuners.privacy.audit and print what was seen."""
    from fedtuners.privacy.audit import TRAININGS, audit

    table = Table("training", "ε claimed", "ε at least", "assumption-free", "sampling p", "verdict")
    wrong = 0
    for name, training in TRAININGS.items():
        found = audit(training, count)
        wrong += found.broken == name.startswith("clean")
        table.add_row(
            *(name, f"{found.claimed:.2f}", f"{found.epsilon:.2f}"),
            *(f"{found.assumption_free:.2f}", f"{found.sampling:.1e}"),
            "refuted" if found.broken else "not refuted",
        )
    (console or Console()).print(table)
    return 1 if wrong else 0


def score(run: str, rows: int, device: str | None = None) -> "Membership":
    """How well the fall of the loss from base to adapter tells training rows from test rows."""
    from fedtuners.privacy.leakage import membership
    from fedtuners.results import open_model
    from fedtuners.tasks import load, make_task
    from fedtuners.tasks.task import losses

    model = open_model(run, None, device)
    splits = load(model.config.data, model.config.seed)
    task = make_task(model.config.data, splits.labels)
    falls = []
    for part in (splits.train, splits.test):
        chosen = part.shuffle(seed=0).select(range(min(rows, len(part))))
        encoded = task.encode(chosen, model.tokenizer)
        sides = []
        for side in ("base", "adapter"):
            with model.side(side) as network:
                sides.append(losses(task, network, encoded, model.tokenizer.pad_token_id))
        falls.append([before - after for before, after in zip(*sides, strict=True)])
    return membership(falls[0], falls[1])
