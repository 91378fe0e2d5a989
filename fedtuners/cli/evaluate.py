"""Score a run, an adapter or a model: the task's metric with its 95 % interval.

fedtuners evaluate latest                             base and adapter, on the run's test rows
fedtuners evaluate latest --split old                 on another split: here, what was forgotten
fedtuners evaluate latest --data mine.jsonl           on every row of a file, by the run's prompt
fedtuners evaluate org/name data=gsm8k                any model, on a data set of conf/data
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from fedtuners.cli.output import write
from fedtuners.cli.project import add_app, enter

if TYPE_CHECKING:
    from fedtuners.config import Config
    from fedtuners.tasks import DataConfig, Metric


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `fedtuners evaluate`."""
    parser.add_argument("model", help="a run, a folder with a PEFT adapter, or a model")
    parser.add_argument("overrides", nargs="*", help="data=… data.test_rows=… as for a run")
    parser.add_argument("--data", metavar="FILE", help="rows in the same columns, all of them")
    parser.add_argument("--split", help="another split of the same data")
    parser.add_argument("--side", choices=("base", "adapter", "both"), default="both")
    parser.add_argument("--batch-size", type=int, help="default: evaluation.batch_size")
    parser.add_argument("--device", help="auto, cpu, cuda, … (default: the run's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the scores there")
    add_app(parser)


def main(parsed: argparse.Namespace) -> int:
    """Load the model, score its sides, print them; returns the exit code."""
    from fedtuners.results import open_model
    from fedtuners.tasks import evaluate, make_task

    if parsed.batch_size is not None and parsed.batch_size < 1:
        raise ValueError(f"--batch-size {parsed.batch_size} must be at least 1")
    config = composed(parsed)
    rows, data = test_rows(config, parsed.data, parsed.split)
    model = open_model(parsed.model, config, parsed.device)
    task = make_task(data, data.labels)
    sides = [side for side in model.sides if parsed.side in ("both", side)]
    if not sides:
        raise ValueError(f"{parsed.model} has no adapter: leave --side out")
    scores: dict[str, Metric] = {}
    size = parsed.batch_size or config.evaluation.batch_size
    for side in sides:
        with model.side(side) as network:
            scores[side] = evaluate(task, network, model.tokenizer, rows, size)
    where = parsed.data or f"{data.source}, {parsed.split or data.test_split} rows"
    Console().print(table(scores, f"{parsed.model} on {where}"))
    if parsed.json:
        found = {"model": parsed.model, "rows": where, "scores": plain(scores)}
        write(parsed.json, json.dumps(found, indent=2) + "\n")
    return 0


def composed(parsed: argparse.Namespace) -> "Config":
    """The run's configuration with the overrides applied, or one composed for a model.

    Data settings alone can be overridden: everything else is the run's.
    """
    from dataclasses import replace

    from fedtuners.config import ConfigError, compose
    from fedtuners.results import is_run, read_run

    own = read_run(parsed.model).config if is_run(parsed.model) else None
    if own is not None and not parsed.overrides:
        return own
    foreign = [word for word in parsed.overrides if not word.lstrip("+~").startswith("data")]
    if foreign:
        raise ConfigError(f"{foreign[0]}: only data and data.… can be set here")
    if own is None:
        from fedtuners.tasks import load

        config = compose(parsed.overrides, enter(parsed.app))
        labels = load(config.data, config.seed).labels
        return replace(config, data=replace(config.data, labels=list(labels)))
    chosen = [word for word in parsed.overrides if word.startswith("data=")]
    if chosen:
        data = compose(parsed.overrides, enter(parsed.app)).data
        return replace(own, data=replace(data, labels=data.labels or own.data.labels))
    return merge(own, parsed.overrides)


def merge(config: "Config", overrides: list[str]) -> "Config":
    """A configuration with some `data.key=value` set."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from fedtuners.config import ConfigError, validate

    structured = OmegaConf.structured(config)
    try:
        structured.merge_with_dotlist(list(overrides))
        return validate(OmegaConf.to_object(structured))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{' '.join(overrides)}: {str(error).splitlines()[0]}") from error


def test_rows(config: "Config", file: str | None, split: str | None) -> tuple[Any, "DataConfig"]:
    """The rows to score, and the data section that reads them. Raises DataError."""
    from dataclasses import replace

    from fedtuners.tasks import DataError, load, load_own

    data = config.data
    if file is not None:
        own = replace(data, source=file, subset=None, train_rows=None)
        if not Path(file).expanduser().exists():
            raise DataError(f"--data {file}: no such file or folder")
        return load_own(replace(own, train_split=split or "test"), config.seed), data
    if split is None:
        return load(data, config.seed).test, data
    source, subset = data.source, data.subset
    if data.test_source is not None:
        source, subset = data.test_source, data.test_subset
    if Path(source).expanduser().is_file():
        raise DataError(f"--split {split}: {source} is one file, which has no splits")
    asked = replace(data, source=source, subset=subset, train_split=split)
    return load_own(replace(asked, train_rows=data.test_rows), config.seed), data


def table(scores: "dict[str, Metric]", title: str) -> Table:
    """A row per side: the score, its interval, the rows."""
    name = next(iter(scores.values())).name
    built = Table("", name, "95 % interval", "rows", title=title, title_justify="left")
    for side, metric in scores.items():
        interval = f"{metric.low:.3f} to {metric.high:.3f}"
        built.add_row(side, f"{metric.value:.3f}", interval, str(metric.count))
    return built


def plain(scores: "dict[str, Metric]") -> dict[str, Any]:
    """The scores as JSON has them."""
    from dataclasses import asdict

    return {side: asdict(metric) for side, metric in scores.items()}
