"""The start of a run: what every participant must hold before the first round.

LoRA-SB needs an update estimate. It comes from rows the server holds, from public rows, or from
the clients, who send two small sketches of their gradients and no row
(fedtuners.adapters.estimate).
Frozen factors become a piece that is sent to each client once.
"""

from dataclasses import replace
from logging import INFO, WARNING

import torch
from flwr.common import log

from fedtuners.adapters import (
    Start,
    estimate_updates,
    range_basis,
    set_start,
    start_from_core,
)
from fedtuners.tasks import load
from fedtuners.tuned import TunedModel
from strategies.aggregation import Mean
from strategies.algebra import State
from strategies.base import AdapterStrategy
from strategies.exchange import Exchange, TooFewRepliesError
from strategies.messages import SKETCH, Piece, read_reply
from strategies.packing import content_hash, manifest, pack
from strategies.secure import CORE, RANGE, Secagg
from strategies.updates import examples_of, tensors_of


def start(tuned: TunedModel, strategy: AdapterStrategy, exchange: Exchange) -> None:
    """Give the adapter its start, and the strategy its global tensors and first piece."""
    if tuned.adapter.needs_estimate:
        set_start(tuned.model, _starts(tuned, strategy, exchange))
    strategy.state = tuned.state()
    if frozen := tuned.frozen():
        strategy.share(frozen, start=True)


def _starts(tuned: TunedModel, strategy: AdapterStrategy, exchange: Exchange) -> dict[str, Start]:
    config = tuned.config
    log(INFO, "start: update estimate from %s", config.start.source)
    if config.start.source == "clients":
        return federated_start(tuned, exchange, strategy.aggregation)
    source = config.start.data or config.data.source
    split = config.start.split or config.data.train_split
    rows = load(replace(config.data, source=source, train_split=split), config.seed).train
    drawn = tuned.start_batches(tuned.task.encode(rows, tuned.tokenizer), client=0)
    return estimate_updates(
        *(tuned.model, drawn, tuned.summed_loss, list(tuned.shapes)),
        rank=rank(tuned),
        learning_rate=config.start.learning_rate,
    )


def rank(tuned: TunedModel) -> int:
    """The rank of an adapter that starts from an estimate."""
    return max(tuned.adapter.module_ranks())


def federated_start(tuned: TunedModel, exchange: Exchange, aggregation: Mean) -> dict[str, Start]:
    """Ask every client for the range of its gradient, then for its core in the common basis."""
    settings = tuned.config.start
    width = rank(tuned) + settings.oversampling
    ranges = _ask(tuned, exchange, aggregation, width, bases=None)
    bases = {module: range_basis(Y) for module, Y in ranges.items()}
    cores = _ask(tuned, exchange, aggregation, width, bases)
    return {
        module: start_from_core(bases[module], Z, rank(tuned), settings.learning_rate)
        for module, Z in cores.items()
    }


def _ask(
    tuned: TunedModel, exchange: Exchange, aggregation: Mean, width: int, bases: State | None
) -> State:
    """The mean over the clients, by num-examples, of one of the two sketches."""
    pieces = []
    if bases is not None:
        pieces = [content_hash(bases)[:16]]
        exchange.pieces[pieces[0]] = Piece(manifest(bases), pack(bases))
    messages = [
        exchange.message(SKETCH, client, 0, pieces=pieces, extra={"width": width})
        for client in exchange.nodes
    ]
    federation = tuned.config.federation
    like = _shapes(tuned, width, second=bases is not None)
    if isinstance(aggregation, Secagg):
        purpose = RANGE if bases is None else CORE
        return aggregation.mean(exchange, messages, purpose, like, federation.deadline)
    answers, problems = exchange.ask(messages, 0, federation.deadline)
    names = manifest(like)
    sketches: list[State] = []
    examples: list[int] = []
    for reply in (read_reply(answer.content) for answer in answers):
        try:
            sketch, count = tensors_of(reply, names), examples_of(reply)
        except ValueError as refused:
            problems[reply.client] = str(refused)
            log(WARNING, "start: client %s refused: %s", reply.client, refused)
            continue
        sketches.append(sketch)
        examples.append(count)
    if len(sketches) < federation.minimum_replies:
        reasons = "; ".join(f"client {client}: {why}" for client, why in sorted(problems.items()))
        raise TooFewRepliesError(
            f"the start has {len(sketches)} good replies and needs {federation.minimum_replies} "
            f"(federation.minimum_replies): {reasons}"
        )
    return aggregation.reduce(sketches, examples)


def _shapes(tuned: TunedModel, width: int, second: bool) -> State:
    """Tensors of the shapes that the clients' sketches must have: Y (m, k), or Z (n, k)."""
    return {
        module: torch.empty((n if second else m), min(width, m, n))
        for module, (m, n) in tuned.shapes.items()
    }
