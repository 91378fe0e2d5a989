"""Run a federation by Flower, print its closing table, and fail when it failed.

`fedtuners run strategy=fedex_lora adapter=lora` is
`flwr run . --stream --run-config 'overrides="strategy=fedex_lora adapter=lora"'`,
whose own exit code is 0 even when the run failed. Exit code 2: the run could not start, and one
sentence says why; 1: it failed on the way.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedtuners.cli.check import check
from fedtuners.cli.follow import follow
from fedtuners.cli.project import add_app, enter

OUTPUTS = "FEDTUNERS_OUTPUTS"  # the folder of all run folders, where outputs= names none


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `fedtuners run`."""
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. strategy=fedex_lora")
    parser.add_argument("--connection", default="", help="a SuperLink of Flower's config.toml")
    add_app(parser)


def main(parsed: argparse.Namespace) -> int:
    """Check, start the run, follow its log, print the table; returns the exit code."""
    overrides = list(parsed.overrides)
    conf, local = enter(parsed.app), is_local(parsed.connection)
    if local and OUTPUTS in os.environ and not _outputs(overrides):
        # A SuperLink of an earlier run serves this one, with the environment of that.
        overrides.append(f"outputs={os.environ[OUTPUTS]}")
    config = check(overrides, conf, here=local)
    flwr = str(Path(sys.executable).with_name("flwr"))
    connection = [parsed.connection] if parsed.connection else []
    command = [flwr, "run", parsed.app, *connection, "--stream", "--run-config"]
    before = _stamp(_latest(overrides))
    failed = follow([*command, run_config(overrides)], config.federation.rounds)
    if failed:
        return failed
    newest = _newest([flwr, "ls", *connection, "--format", "json"])
    if newest["status"] != "finished:completed":
        print(f"run {newest['run-id']} {newest['status']}: {newest.get('status-details', '')}")
        return 1
    folder = _latest(overrides)
    if folder is None or _stamp(folder) == before:
        print("the run finished without a run folder on this machine: it is the server's")
        return 0 if parsed.connection else 1
    show(folder)
    show_traffic(newest["network-traffic"])
    return 0


def run_config(overrides: Sequence[str]) -> str:
    """The overrides as Flower's --run-config, whose TOML strings end at the first quote."""
    text = shlex.join(overrides).replace("\\", "\\\\")
    return 'overrides="' + text.replace('"', "\\u0022").replace("\n", "\\n") + '"'


def show(folder: Path, console: Console | None = None) -> None:
    """Print the closing table of a run folder."""
    console = console or Console()
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    console.print(table(summary, lines))
    sent, seconds = summary["bytes"], summary["seconds"]
    console.print(
        f"{summary['strategy']} with {summary['adapter']}: {summary['metric']} "
        f"[bold]{summary['initial']:.3f} → {summary['final']:.3f}[/bold], "
        f"{summary['trainable_parameters']:,} trained numbers a client"
    )
    console.print(
        f"bytes: {sent['up_per_client_round']:,} up and {sent['down_per_client_round']:,} down per "
        f"client and round, {sent['initialisation']:,} for the start, {sent['total']:,} in all"
    )
    console.print(
        f"seconds: {seconds['total']:.1f}, of which training {seconds['training']:.1f} and "
        f"evaluation {seconds['evaluation']:.1f}"
    )
    console.print(f"run folder: {folder}", soft_wrap=True)


def show_traffic(counted: dict[str, int]) -> None:
    """Print what Flower counted, which in a simulation is nothing."""
    if counted["total-bytes"]:
        print(
            f"Flower counted {counted['inbound-bytes']:,} bytes from the sites and "
            f"{counted['outbound-bytes']:,} to them, envelopes included"
        )


def table(summary: dict[str, Any], lines: list[dict[str, Any]]) -> Table:
    """A row per round: metric, mean loss, bytes per client, seconds."""
    built = Table("round", summary["metric"], "loss", "up", "down", "training s", "evaluation s")
    for line in (line for line in lines if "client" not in line):
        clients = [c for c in lines if c["round"] == line["round"] and "client" in c]
        score = line.get(summary["metric"])
        built.add_row(
            str(line["round"]) if line["round"] else "before",
            "" if score is None else f"{score:.3f}",
            f"{_mean(clients, 'loss'):.3f}" if clients and "loss" in clients[0] else "",
            f"{_mean(clients, 'up'):,.0f}" if clients else "",
            f"{_mean(clients, 'down'):,.0f}" if clients else "",
            f"{line['training_seconds']:.1f}",
            f"{line['evaluation_seconds']:.1f}",
        )
    return built


def _mean(lines: list[dict[str, Any]], key: str) -> float:
    return sum(float(line[key]) for line in lines) / len(lines)


def is_local(connection: str) -> bool:
    """Whether a connection of Flower's config.toml, or its default, simulates on this machine."""
    path = Path(os.environ.get("FLWR_HOME", "~/.flwr")).expanduser() / "config.toml"
    known = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    links = known.get("superlink", {})
    chosen = links.get(connection or links.get("default", "local"), {})
    return bool(chosen.get("address", ":local:") == ":local:")


def _newest(command: Sequence[str]) -> dict[str, Any]:
    """What Flower says of the run that was started last."""
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    newest: dict[str, Any] = json.loads(listed.stdout)["runs"][0]
    return newest


def _stamp(folder: Path | None) -> tuple[Path | None, int]:
    """Changes when a run writes its summary, be it into a new folder or a resumed one."""
    summary = folder / "summary.json" if folder else Path()
    return folder, summary.stat().st_mtime_ns if summary.is_file() else 0


def _latest(overrides: Sequence[str]) -> Path | None:
    """The newest run folder, where the server of a local run writes it."""
    latest = Path(_outputs(overrides) or os.environ.get(OUTPUTS, "outputs"), "latest")
    return latest.resolve() if latest.exists() else None


def _outputs(overrides: Sequence[str]) -> str | None:
    """The folder of all run folders that the overrides name."""
    chosen = [word.partition("=")[2] for word in overrides if word.startswith("outputs=")]
    return chosen[-1] if chosen else None
