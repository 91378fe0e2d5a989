"""What a run will take, before anything is downloaded or trained: numbers, bytes, memory, steps.

    fedtuners plan                                          the main job
    fedtuners plan strategy=fedex_lora adapter=lora federation.clients=25
    fedtuners plan model=mistral-7b data=metamathqa --shapes mistral-7b --all

Exit code 2 when the run could not start; every reason is printed with its fix.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from fedtuners.cli.check import dealt
from fedtuners.cli.idle_client import IdleClient
from fedtuners.cli.output import write
from fedtuners.cli.project import add_app, enter

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from fedtuners.config import Config
    from fedtuners.memory import Memory
    from fedtuners.planning import Skeleton
    from strategies.base import AdapterStrategy


@dataclass(frozen=True)
class Plan:
    """One run's forecast."""

    strategy: str
    adapter: str
    trained: int  # numbers that train, a client
    bytes: dict[str, int]  # as summary.json has them
    memory: "Memory | None"
    process: int | None  # peak of a client's process on a CPU, libraries and all, in bytes
    steps: int | None  # optimiser steps of all clients; None: as the rows will say
    tokens: int | None  # trained on, at most
    notes: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `fedtuners plan`."""
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, as for a run")
    parser.add_argument(
        "--shapes", metavar="NAME", help="a known shape in place of the model's files"
    )
    parser.add_argument("--nodes", type=int, help="nodes that answer (default: one a client)")
    parser.add_argument("--all", action="store_true", help="also every strategy and adapter")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the plan there")
    add_app(parser)


def main(parsed: argparse.Namespace) -> int:
    """Plan and print; returns 1 when the run could not start."""
    conf = enter(parsed.app)
    from fedtuners.config import compose
    from fedtuners.planning import rows_here

    config = compose(parsed.overrides, conf)
    rows = rows_here(config)
    config = config if rows is None else dealt(config, rows)
    base = base_of(config, parsed.shapes)
    nodes = parsed.nodes or config.federation.clients
    idle = IdleClient(conf)
    found, problems = examine(config, base, nodes)
    found = with_process(found, idle.memory())
    console = Console()
    if found is not None:
        show(found, config, console)
    for problem in problems:
        console.print(f"[bold]cannot run:[/bold] {problem}", soft_wrap=True)
    if parsed.all:
        console.print(alternatives(parsed.overrides, conf, base, nodes))
    if parsed.json and found is not None:
        write(parsed.json, json.dumps(asdict(found) | {"problems": problems}, indent=2) + "\n")
    return 2 if problems else 0


def with_process(plan: Plan | None, idle: int | None) -> Plan | None:
    """The plan with the memory of a client's process, from that of an idle one."""
    from fedtuners.memory import resident

    if plan is None or plan.memory is None or idle is None:
        return plan
    return replace(plan, process=resident(plan.memory, idle))


def base_of(config: "Config", shapes: str | None) -> "PretrainedConfig":
    """The base model's configuration, or a known shape."""
    from fedtuners.planning import read_base
    from fedtuners.shapes import known_shape

    return known_shape(shapes) if shapes else read_base(config)


def examine(
    config: "Config", base: "PretrainedConfig", nodes: int, memory: bool = True
) -> tuple[Plan | None, list[str]]:
    """The plan, as far as there can be one, and everything that is against the run."""
    from fedtuners.config import make_adapter
    from fedtuners.planning import problems, skeleton
    from fedtuners.privacy import check
    from strategies.aggregation import make_aggregation
    from strategies.base import strategy_class

    found = problems(config, base)
    adapter = make_adapter(config)
    kind = strategy_class(config)
    strategy: AdapterStrategy | None = None
    body: Skeleton | None = None
    try:
        settings = {k: v for k, v in config.strategy.items() if k != "_target_"}
        strategy = kind(adapter, **settings)
        strategy.aggregation = make_aggregation(config)
        strategy.aggregation.check(strategy, config)
    except ValueError as error:
        found.append(str(error))
    try:
        check(config)
    except ValueError as error:
        found.append(str(error))
    try:
        body = skeleton(config, adapter, base, kind.only_linear_factor)
    except ValueError as error:
        found.append(str(error))
    asked = max(1, round(config.federation.fraction * config.federation.clients))
    if asked < config.federation.minimum_replies:
        found.append(
            f"a round asks {asked} clients and needs {config.federation.minimum_replies} replies: "
            "lower federation.minimum_replies or raise federation.fraction or federation.clients"
        )
    if strategy is None or body is None:
        return None, found
    return _plan(config, strategy, body, nodes, memory), found


def _plan(
    config: "Config", strategy: "AdapterStrategy", body: "Skeleton", nodes: int, memory: bool
) -> Plan:
    from fedtuners.planning import bytes_of
    from server_app.report import count
    from strategies.forecast import Tensors, forecast

    trained, federation = body.trained, config.federation
    tensors = Tensors(trained, body.frozen, body.shapes, body.start_rank)
    sent = count(forecast(config, strategy, tensors, nodes))
    asked = max(1, round(federation.fraction * federation.clients))
    residual = bytes_of(strategy.gains(body.shapes, asked)) * (federation.rounds - 1)
    known = config.train.epochs is None
    steps = federation.rounds * asked * config.train.steps if known else None
    batch = config.train.batch_size * config.data.max_length
    return Plan(
        strategy=str(config.strategy["_target_"]).split(".")[-2],
        adapter=body.adapter.name,
        trained=sum(tensor.numel() for tensor in trained.values()),
        bytes=sent,
        memory=body.memory(residual) if memory else None,
        process=None,
        steps=steps,
        tokens=None if steps is None else steps * batch,
        notes=notes(config),
    )


def notes(config: "Config") -> list[str]:
    """What the numbers leave out, and what privacy will cost where the rows are at hand."""
    from fedtuners.planning import rows_here
    from server_app.privacy import simulated_forecast

    said = []
    if config.privacy.active:
        rows = rows_here(config)
        later = "ε is forecast once the rows are on this machine"
        said.append(later if rows is None else simulated_forecast(config, rows))
    return said


def show(plan: Plan, config: "Config", console: Console) -> None:
    """Print one plan."""
    sent = plan.bytes
    built = Table("", "", title=f"{plan.strategy} with {plan.adapter} on {config.model.name}")
    built.columns[1].justify = "right"
    built.add_row("trained numbers a client", f"{plan.trained:,}")
    built.add_row("bytes up, client and round", f"{sent['up_per_client_round']:,}")
    built.add_row("bytes down, client and round", f"{sent['down_per_client_round']:,}")
    built.add_row("bytes of the start", f"{sent['initialisation']:,}")
    built.add_row("bytes in all", f"{sent['total']:,}")
    if plan.steps is None:
        built.add_row("optimiser steps", "as the clients' rows say (train.epochs)")
    else:
        built.add_row("optimiser steps, all clients", f"{plan.steps:,}")
        built.add_row("tokens, at most", f"{plan.tokens:,}")
    for name, size in _parts(plan):
        built.add_row(f"memory of a client: {name}", f"{size / 2**20:,.1f} MiB")
    console.print(built)
    for note in plan.notes:
        console.print(note, soft_wrap=True)


def _parts(plan: Plan) -> Iterator[tuple[str, int]]:
    memory = plan.memory
    if memory is None:
        return
    for name, size in asdict(memory).items():
        if size and name != "estimate":
            yield name, size
    yield "tensors at the peak of training", memory.training
    if memory.estimate:
        yield "tensors at the peak of the start", memory.estimate
    if plan.process:
        yield "its process on a CPU", plan.process


def alternatives(overrides: list[str], conf: Path, base: "PretrainedConfig", nodes: int) -> Table:
    """Every strategy with every adapter that it takes, at the settings of conf/."""
    from fedtuners.config import compose

    words = [w for w in overrides if not w.lstrip("+~").startswith(("strategy", "adapter"))]
    names = ("strategy", "adapter", "trained", "up", "down", "start", "in all")
    built = Table(*names, title="bytes per client and round, and in all")
    for column in built.columns[2:]:
        column.justify = "right"
    for strategy in sorted(path.stem for path in (conf / "strategy").glob("*.yaml")):
        for adapter in sorted(path.stem for path in (conf / "adapter").glob("*.yaml")):
            chosen = [*words, f"strategy={strategy}", f"adapter={adapter}"]
            plan, problems = examine(compose(chosen, conf), base, nodes, memory=False)
            if plan is not None and not problems:
                built.add_row(*_numbers(strategy, adapter, plan))
    return built


def _numbers(strategy: str, adapter: str, plan: Plan) -> Any:
    keys = ("up_per_client_round", "down_per_client_round", "initialisation", "total")
    return strategy, adapter, f"{plan.trained:,}", *(short(plan.bytes[key]) for key in keys)


def short(size: int) -> str:
    """Bytes in three digits and a decimal unit."""
    value, units = float(size), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.5 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.3g} {unit}"
