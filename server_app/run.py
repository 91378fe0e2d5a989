"""One run from composed configuration to run folder, read from top to bottom."""

import time
from dataclasses import replace
from logging import INFO
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from hydra.utils import instantiate

from fedtuners.config import Config, make_adapter, to_json
from fedtuners.tasks import evaluate, load
from fedtuners.tuned import TunedModel
from server_app.clients import meet
from server_app.folder import RunFolder
from server_app.report import Reporter
from server_app.save import save_adapter
from server_app.start import start
from strategies.base import AdapterStrategy, strategy_class, wire_dtype
from strategies.packing import manifest, unpack


def run(config: Config, grid: Grid, run_id: str) -> dict[str, Any]:
    """Everything of one run; returns its summary. Raises one clear sentence for what cannot run."""
    adapter = make_adapter(config)
    strategy: AdapterStrategy = instantiate(config.strategy, _partial_=True)(adapter)
    rows = load(config.data, config.seed)
    config = replace(config, data=replace(config.data, labels=list(rows.labels)))
    tuned = TunedModel(config, linear_only=strategy_class(config).only_linear_factor)
    folder = RunFolder.create(config, strategy_name(config))
    log(INFO, "run folder: %s", folder.path)

    exchange = meet(grid, run_id, config, to_json(config))
    strategy.setup(exchange, config.federation, config.data.measured, config.seed)
    started = time.monotonic()
    start(tuned, strategy, exchange)
    start_seconds = time.monotonic() - started

    def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        final = server_round == config.federation.rounds
        if server_round % config.evaluation.every and not final:
            return None
        names = manifest(strategy.state, wire_dtype(config.federation))
        tuned.install(unpack(arrays, names), strategy.shared)
        metric = evaluate(
            *(tuned.task, tuned.model, tuned.tokenizer, rows.test),
            batch_size=config.evaluation.batch_size,
        )
        return MetricRecord({metric.name: metric.value, "examples": metric.count})

    reporter = Reporter(folder, config.data.measured, exchange.traffic)
    strategy.observers.append(reporter)
    result = strategy.start(
        grid,
        strategy.packed(),
        num_rounds=config.federation.rounds,
        timeout=config.federation.deadline,
        evaluate_fn=measure,
    )
    names = manifest(strategy.state, wire_dtype(config.federation))
    tuned.install(unpack(result.arrays, names), strategy.shared)
    save_adapter(tuned, folder.path)
    summary = reporter.finish(
        {
            "strategy": strategy_name(config),
            "adapter": adapter.name,
            "model": config.model.name,
            "data": config.data.source,
            "clients": len(exchange.nodes),
            "rounds": strategy.completed,
            "trainable_parameters": sum(t.numel() for t in strategy.state.values()),
            "start_seconds": round(start_seconds, 2),
        }
    )
    log(INFO, "finished: %s", folder.path)
    return summary


def strategy_name(config: Config) -> str:
    """The strategy's name, that of its file: strategies.fed_sb.FedSB is fed_sb."""
    return str(config.strategy["_target_"]).split(".")[-2]
