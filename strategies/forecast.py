"""What a run will send: the bytes of its messages from shapes alone, before anything runs.

The messages are made as in a run, by the same exchange, but without their arrays, whose bytes are
known from their shapes. A test holds the result against what real runs count.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from flwr.serverapp import Grid

from fedtuners.config import Config, to_json
from strategies.algebra import State
from strategies.base import AdapterStrategy, wire_dtype
from strategies.exchange import Exchange, Traffic
from strategies.messages import (
    DIGEST,
    OK,
    Metrics,
    Piece,
    Reply,
    content_bytes,
    record_bytes,
)
from strategies.packing import HEADER_BYTES, manifest

RUN = "0" * 20  # as long as Flower's run ids
HASH = "0" * DIGEST
TRAINED: Metrics = {
    "loss": 1.0,
    "examples": 4096,
    "tokens": 2**20,
    "steps": 128,
    "seconds": 1.0,
    "num-examples": 4096,
}


@dataclass(frozen=True)
class Tensors:
    """What a participant's model holds, as tensors without values."""

    trained: State
    frozen: State
    shapes: Mapping[str, tuple[int, int]]  # (out_features, in_features) of each adapted module
    start_rank: int | None  # of an adapter that starts from an update estimate


def forecast(config: Config, strategy: AdapterStrategy, tensors: Tensors, nodes: int) -> Traffic:
    """The bytes that a run of `federation.clients` clients on so many nodes counts.

    A residual is taken at its largest rank, and no reply as lost.
    """
    return _Forecast(config, strategy, tensors, nodes).run()


class _Forecast:
    """The messages of one run in their order."""

    def __init__(
        self, config: Config, strategy: AdapterStrategy, tensors: Tensors, nodes: int
    ) -> None:
        self.config, self.strategy, self.tensors = config, strategy, tensors
        everyone = dict(enumerate(range(nodes)))
        self.exchange = Exchange.create(cast(Grid, None), RUN, everyone, to_json(config))
        self.sizes: dict[str, int] = {}  # of the pieces' arrays
        self.wire = wire_dtype(config.federation)

    def run(self) -> Traffic:
        """Greet, start, train."""
        exchange, federation = self.exchange, self.config.federation
        hello = {"name": "", "own_data": False, "partition": 1, "examples": 0}
        for client in exchange.nodes:
            self.send(client, 0)
            self.reply(client, 0, 0, {}, hello)
        exchange.renumber(dict.fromkeys(range(federation.clients), 0))
        self.start()
        strategy = self.strategy
        strategy.exchange, strategy.federation, strategy.seed = (
            exchange,
            federation,
            self.config.seed,
        )
        trained = packed_bytes(self.tensors.trained, self.wire)
        pieces = [self.piece("frozen", self.tensors.frozen, start=True)]
        for round_ in range(1, federation.rounds + 1):
            chosen = strategy.sample(round_)
            for client in chosen:
                held = [digest for digest in pieces if digest]
                self.send(client, round_, held, trained, {"manifest": HASH})
                self.reply(client, round_, trained, TRAINED, {"manifest": HASH})
            gained = strategy.gains(self.tensors.shapes, len(chosen))
            pieces.append(self.piece(f"round{round_}", gained))
        return exchange.traffic

    def start(self) -> None:
        """The two sketches of an update estimate by the clients."""
        rank, settings = self.tensors.start_rank, self.config.start
        if rank is None or settings.source != "clients":
            return
        width = rank + settings.oversampling
        ranges, cores = (
            {
                module: torch.empty(size[side], min(width, *size), device="meta")
                for module, size in self.tensors.shapes.items()
            }
            for side in (0, 1)
        )
        bases = self.piece("bases", ranges)
        for sketch, pieces in ((ranges, []), (cores, [bases])):
            for client in self.exchange.nodes:
                self.send(client, 0, pieces, 0, {"width": width})
                size = packed_bytes(sketch)
                self.reply(client, 0, size, {"num-examples": 4096}, {"manifest": HASH})

    def piece(self, name: str, state: State, start: bool = False) -> str:
        """Add tensors that clients must hold; returns their name, empty when there are none."""
        if not state:
            return ""
        digest = f"{name:0<{DIGEST}}"
        self.exchange.pieces[digest] = Piece(manifest(state))
        self.sizes[digest] = packed_bytes(state)
        if start:
            self.exchange.start.add(digest)
        return digest

    def send(
        self,
        client: int,
        round_: int,
        pieces: list[str] | None = None,
        arrays: int = 0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Count one request, with the pieces that the client does not hold yet."""
        exchange, held = self.exchange, self.exchange.held[client]
        content = exchange.request(client, round_, pieces or [], extra=extra).content()
        new = [digest for digest in [exchange.config, *(pieces or [])] if digest not in held]
        first = sum(self.sizes.get(digest, 0) for digest in new if digest in exchange.start)
        rest = sum(self.sizes.get(digest, 0) for digest in new if digest not in exchange.start)
        traffic = exchange.traffic
        texts = sum(
            record_bytes(record)
            for name, record in content.items()
            if name.partition(".")[2] in exchange.start
        )
        body = content_bytes(content) - texts
        traffic.add(traffic.down, 0, client, first + texts)
        traffic.add(traffic.down, round_, client, rest + body + arrays)
        held.update(new)

    def reply(
        self, client: int, round_: int, arrays: int, metrics: Metrics, extra: dict[str, Any]
    ) -> None:
        """Count one reply."""
        reply = Reply(client, round_, OK, metrics=metrics, extra=extra)
        size = content_bytes(reply.content()) + arrays
        self.exchange.traffic.add(self.exchange.traffic.up, round_, client, size)


def packed_bytes(state: State, wire: torch.dtype | None = None) -> int:
    """Bytes of a packed state: a flat array per dtype, each with its header."""
    sizes: dict[torch.dtype, int] = defaultdict(int)
    for tensor in state.values():
        rounded = wire is not None and tensor.dtype == torch.float32
        dtype = wire if rounded and wire is not None else tensor.dtype
        sizes[dtype] += tensor.numel() * dtype.itemsize
    return sum(sizes.values()) + HEADER_BYTES * len(sizes)
