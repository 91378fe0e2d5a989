"""What a run will send: the bytes of its messages from shapes alone, before anything runs.

The messages are made as in a run, by the same exchange, but without their arrays, whose bytes are
known from their shapes. Under secure aggregation they include keys, shares, masks and unmasking,
of sites that do not sign. A test holds the result against what real runs count.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
from flwr.serverapp import Grid

from fedtuners.config import Config, to_json
from fedtuners.privacy.secagg import Announcement, threshold
from fedtuners.privacy.secagg.shamir import SHARE_BYTES
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
from strategies.secure import CORE, RANGE, TRAINED, Secagg, values

RUN = "0" * 20  # as long as Flower's run ids
HASH = "0" * DIGEST
EXAMPLES: Metrics = {"num-examples": 4096}
MEASURED: Metrics = {"loss": 1.0, "examples": 4096, "tokens": 2**20, "steps": 128, "seconds": 1.0}
PRIVATE: Metrics = {
    "epsilon": 1.0,
    "delta": 1e-5,
    "noise_multiplier": 1.0,
    "sample_rate": 0.1,
    "protected_units": 4096,
}
CLEAR = {"epsilon", "seconds"}  # what of the metrics travels unmasked
KEY, SHARE = "0" * 64, "0" * 2 * SHARE_BYTES  # in hex
SEALED = 2 * SHARE + "0" * 2 * 16  # a share of the key and one of the seed, and Poly1305's tag


@dataclass(frozen=True)
class Tensors:
    """What a participant's model holds, as tensors without values."""

    trained: State
    frozen: State
    shapes: Mapping[str, tuple[int, int]]  # (out_features, in_features) of each adapted module
    start_rank: int | None  # of an adapter that starts from an update estimate


class Asked(NamedTuple):
    """What a request for an upload carries."""

    pieces: list[str]
    arrays: int  # bytes
    extra: dict[str, Any]


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
        down = packed_bytes(self.tensors.trained, self.wire)
        metrics = EXAMPLES | (PRIVATE if self.config.privacy.active else MEASURED)
        pieces = [self.piece("frozen", self.tensors.frozen, start=True)]
        for round_ in range(1, federation.rounds + 1):
            chosen = strategy.sample(round_)
            held = [digest for digest in pieces if digest]
            asked = Asked(held, down, {"manifest": HASH})
            self.uploads(TRAINED, round_, chosen, asked, self.tensors.trained, metrics)
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
        metrics = EXAMPLES | (PRIVATE if self.config.privacy.active else {})
        clients = list(self.exchange.nodes)
        for purpose, sketch, pieces in ((RANGE, ranges, []), (CORE, cores, [bases])):
            self.uploads(purpose, 0, clients, Asked(pieces, 0, {"width": width}), sketch, metrics)

    def uploads(
        self,
        purpose: str,
        round_: int,
        clients: Sequence[int],
        asked: Asked,
        upload: State,
        metrics: Metrics,
    ) -> None:
        """The requests for an upload of each client, and the answers."""
        aggregation = self.strategy.aggregation
        if isinstance(aggregation, Secagg):
            self.sum(aggregation, purpose, round_, clients, asked, upload, metrics)
            return
        size = packed_bytes(upload, self.wire if purpose == TRAINED else None)
        for client in clients:
            self.send(client, round_, *asked)
            self.reply(client, round_, size, metrics, {"manifest": HASH})

    def sum(
        self,
        secagg: Secagg,
        purpose: str,
        round_: int,
        clients: Sequence[int],
        asked: Asked,
        upload: State,
        metrics: Metrics,
    ) -> None:
        """The same as a secure sum from which nobody drops out."""
        encoding = secagg.encoding(len(clients))
        size = HEADER_BYTES + encoding.dtype.itemsize * encoding.length(values(upload))
        clear = {name: value for name, value in metrics.items() if name in CLEAR}
        keys = {client: asdict(Announcement(client, KEY, KEY)) for client in clients}
        roster = {
            "roster": list(keys.values()),
            "threshold": threshold(secagg.threshold, len(clients)),
        }
        for client in clients:
            mail = {"mailbox": {str(peer): SEALED for peer in clients if peer != client}}
            self.stage(purpose, round_, client, {}, {"keys": keys[client]})
            self.stage(purpose, round_, client, roster, {"shares": mail["mailbox"]})
            self.send(client, round_, asked.pieces, asked.arrays, asked.extra | mail)
            self.reply(client, round_, size, clear, {"manifest": HASH})
            seeds = {"seeds": {str(peer): SHARE for peer in clients}, "keys": {}}
            self.stage(purpose, round_, client, {"survivors": clients}, seeds)

    def stage(
        self,
        purpose: str,
        round_: int,
        client: int,
        question: Mapping[str, Any],
        answer: dict[str, Any],
    ) -> None:
        """A client's part in an exchange of a secure sum that carries no tensors."""
        self.send(client, round_, extra={"purpose": purpose, **question})
        self.reply(client, round_, 0, {}, answer)

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
