"""One run from composed configuration to run folder, read from top to bottom."""

import time
from dataclasses import replace
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from hydra.utils import instantiate

from fedtuners.card import write_cards
from fedtuners.config import Config, make_adapter, to_json
from fedtuners.logs import located, recorded
from fedtuners.privacy import check as check_privacy
from fedtuners.tasks import Splits, evaluate, load
from fedtuners.tuned import TunedModel
from server_app import checkpoint
from server_app.checkpoint import Checkpoint
from server_app.clients import meet
from server_app.folder import RunFolder
from server_app.privacy import privacy_summary, simulated_forecast
from server_app.report import Reporter
from server_app.save import save_adapter
from server_app.start import start
from server_app.track import Tracker, make_tracker
from strategies.aggregation import make_aggregation
from strategies.base import AdapterStrategy, strategy_class
from strategies.packing import unpack
from strategies.updates import RoundReport

CONF = Path(__file__).resolve().parent.parent / "conf"


def run(config: Config, grid: Grid, run_id: str) -> dict[str, Any]:
    """Everything of one run, or the rest of the one that `resume` names; returns its summary.

    Raises one clear sentence for what cannot run.
    """
    adapter = make_adapter(config)
    check_privacy(config)
    strategy: AdapterStrategy = instantiate(config.strategy, _partial_=True)(adapter)
    strategy.aggregation = make_aggregation(config)
    strategy.aggregation.check(strategy, config)
    tracker = make_tracker(config)
    rows = load(config.data, config.seed)
    config = replace(config, data=replace(config.data, labels=list(rows.labels)))
    tuned = TunedModel(config, linear_only=strategy_class(config).only_linear_factor)
    earlier = None
    if config.resume is None:
        folder = RunFolder.create(config, strategy_name(config))
    else:
        folder = RunFolder.resume(config)
        earlier = checkpoint.load(folder.checkpoint)
        config = replace(config, resume=None)
    journal = recorded(folder.path / "log.jsonl")
    with folder.alone(), folder.room(), journal, located(run=run_id, node="server"):
        log(INFO, "run folder: %s", folder.path)
        return _rounds(config, grid, run_id, folder, strategy, tuned, rows, tracker, earlier)


def _rounds(
    config: Config,
    grid: Grid,
    run_id: str,
    folder: RunFolder,
    strategy: AdapterStrategy,
    tuned: TunedModel,
    rows: Splits,
    tracker: Tracker,
    earlier: Checkpoint | None,
) -> dict[str, Any]:
    """What every run has: clients, a start, rounds, a result."""
    text = to_json(config)
    if earlier is None:
        exchange = meet(grid, run_id, config, text)
    else:
        exchange = meet(grid, earlier.run, config, text, earlier.sites)
    if config.privacy.active and not exchange.sites:
        log(INFO, "%s", simulated_forecast(config, rows))
    strategy.setup(exchange, config.federation, config.data.measured, config.seed)
    started = time.monotonic()
    if earlier is None:
        start(tuned, strategy, exchange)
        start_seconds = time.monotonic() - started
    else:
        earlier.restore(strategy, exchange)
        folder.rewind(earlier.completed)
        start_seconds = earlier.start_seconds
        log(INFO, "going on after round %s", earlier.completed)

    def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        final = server_round == config.federation.rounds
        if server_round % config.evaluation.every and not final:
            return None
        tuned.install(unpack(arrays, strategy.manifest()), strategy.shared)
        metric = evaluate(
            *(tuned.task, tuned.model, tuned.tokenizer, rows.test),
            batch_size=config.evaluation.batch_size,
        )
        return MetricRecord({metric.name: metric.value, "examples": metric.count})

    spent = earlier.seconds if earlier else start_seconds
    reporter = Reporter(folder, config.data.measured, exchange.traffic, tracker, spent)
    tracker.open(folder.path, config)

    def keep(report: RoundReport) -> None:
        about = {"config": text, "start_seconds": start_seconds, "seconds": reporter.elapsed}
        Checkpoint.take(strategy, exchange, **about).save(folder.checkpoint)

    strategy.observers += [reporter, keep]
    result = strategy.start(
        grid,
        strategy.packed(),
        num_rounds=config.federation.rounds,
        timeout=config.federation.deadline,
        evaluate_fn=measure,
    )
    tuned.install(unpack(result.arrays, strategy.manifest()), strategy.shared)
    save_adapter(tuned, folder.path)
    summary = reporter.finish(
        {
            "strategy": strategy_name(config),
            "adapter": strategy.adapter.name,
            "model": config.model.name,
            "data": config.data.source,
            "clients": len(exchange.nodes),
            "rounds": strategy.completed,
            "trainable_parameters": sum(t.numel() for t in strategy.state.values()),
            "start_seconds": round(start_seconds, 2),
            "privacy": privacy_summary(config, folder.read_metrics()),
        }
    )
    write_cards(folder.path, config, summary, CONF)
    log(INFO, "finished: %s", folder.path)
    return summary


def strategy_name(config: Config) -> str:
    """The strategy's name, that of its file: strategies.fed_sb.FedSB is fed_sb."""
    return str(config.strategy["_target_"]).split(".")[-2]
