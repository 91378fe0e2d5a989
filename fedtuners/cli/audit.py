"""Audit privacy: canaries against the project's own DP-SGD, or membership in a finished run.

fedtuners audit                        clean and broken trainings: ε seen against ε claimed
fedtuners audit latest                 how well the run's adapter tells its training rows apart
fedtuners audit latest --others F      the same against the rows of a file
fedtuners audit folder/ data=F         an adapter's folder, with the rows that it was trained on
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fedtuners.cli.project import add_app

if TYPE_CHECKING:
    from fedtuners.config import Config
    from fedtuners.privacy.leakage import Membership


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `fedtuners audit`."""
    parser.add_argument(
        "model", nargs="?", metavar="run", help="a run, or a folder with a PEFT adapter"
    )
    parser.add_argument("overrides", nargs="*", help="data=… data.train_rows=… as for a run")
    parser.add_argument("--canaries", type=int, default=1000, help="of each training")
    parser.add_argument("--rows", type=int, default=500, help="of each side, for a run's score")
    parser.add_argument(
        "--others", metavar="FILE", help="rows like the trained ones that were not (default: test)"
    )
    parser.add_argument("--device", help="auto, cpu, cuda, … (default: the run's)")
    add_app(parser)


def main(parsed: argparse.Namespace) -> int:
    """Print the table; 1 when a clean training is refuted or a broken one is not."""
    for option, least in (("rows", 1), ("canaries", 20)):
        if getattr(parsed, option) < least:
            raise ValueError(f"--{option} {getattr(parsed, option)} must be at least {least}")
    if parsed.model is None:
        return canaries(parsed.canaries)
    found = score(parsed.model, configured(parsed), parsed.rows, parsed.others, parsed.device)
    Console().print(
        f"membership in {parsed.model}: AUC [bold]{found.auc:.3f}[/bold] (.5 is guessing), "
        f"{found.found:.1%} of the members found at {found.false_alarms:.0%} false alarms"
    )
    return 0


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


def configured(parsed: argparse.Namespace) -> "Config":
    """What says which rows were trained on: the run's configuration, or one for an adapter.

    Raises:
        RunError: when there is neither a run nor an adapter.
    """
    from fedtuners.cli.evaluate import composed
    from fedtuners.results import ADAPTER_CONFIG, is_run, read_run

    if not is_run(parsed.model) and not (Path(parsed.model) / ADAPTER_CONFIG).is_file():
        read_run(parsed.model)
    return composed(parsed)


def score(
    name: str, config: "Config", rows: int, others: str | None = None, device: str | None = None
) -> "Membership":
    """How well the fall of the loss from base to adapter tells training rows from other rows.

    Args:
        name: a run, or a folder with an adapter.
        config: its data section names the training rows, and the test rows.
        rows: of each side at most, drawn at random.
        others: a file in place of the test rows.
        device: overrides the configuration's.
    """
    from fedtuners.cli.evaluate import test_rows
    from fedtuners.privacy.leakage import membership
    from fedtuners.results import open_model
    from fedtuners.tasks import load, make_task
    from fedtuners.tasks.task import losses

    model = open_model(name, config, device)
    splits = load(config.data, config.seed)
    task = make_task(config.data, splits.labels)
    falls = []
    for part in (splits.train, test_rows(config, others, None)[0]):
        chosen = part.shuffle(seed=0).select(range(min(rows, len(part))))
        encoded = task.encode(chosen, model.tokenizer)
        sides = []
        for side in model.sides:
            with model.side(side) as network:
                sides.append(losses(task, network, encoded, model.tokenizer.pad_token_id))
        falls.append([before - after for before, after in zip(*sides, strict=True)])
    return membership(falls[0], falls[1])
