"""Secure aggregation as an aggregation of uploads: the server learns their sum and no upload.

Bonawitz et al., CCS 2017 (https://eprint.iacr.org/2017/281), in four exchanges of messages: keys,
shares, the request for the upload itself (which comes back masked), and unmasking. Where all sites
sign their keys, there is one more before the last: they sign whose uploads arrived. The
cryptography is fedtuners.privacy.secagg's, the clients' side client_app/secure.py's; what it
protects against and what not is in docs/secure-aggregation.md.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from logging import INFO, WARNING
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from flwr.app import Message
from flwr.common import log

from fedtuners.privacy.secagg import (
    FixedPoint,
    Ring,
    Roster,
    SecAggError,
    Total,
    add_up,
    threshold,
    unmask,
)
from strategies.aggregation import Mean, combined
from strategies.algebra import State
from strategies.exchange import Exchange, TooFewRepliesError, read_client
from strategies.messages import Metrics, Reply, read_reply, text_hash
from strategies.packing import manifest
from strategies.updates import Update
from strategies.vectors import flatten, unflatten

if TYPE_CHECKING:
    from strategies.base import AdapterStrategy

KEYS, SHARES = "query.secagg_keys", "query.secagg_shares"
CONFIRM, UNMASK = "query.secagg_confirm", "query.secagg_unmask"
STAGES = (KEYS, SHARES, CONFIRM, UNMASK)
TRAINED, RANGE, CORE = "train", "range", "core"  # what is summed: the only uploads there are
MASKED = "masked"  # the name of the array of a masked upload


@dataclass
class Secagg(Mean):
    """The weighted mean of uploads that the server never sees.

    Parameters
    ----------
    threshold
        The fraction of the asked clients that it takes to unmask the sum; always more than half.
    clip
        The largest magnitude of an uploaded number.
    max_examples
        The largest number of examples of one client.
    bits
        Of a number on the wire, 64 or 32.
    stage_deadline
        Seconds for each of the exchanges without training; `federation.deadline` is training's.
    """

    needs: ClassVar[str] = "shows the server only the sum of the uploads"

    threshold: float = 0.66
    clip: float = 1024.0
    max_examples: int = 2**20
    bits: int = 64
    stage_deadline: float = 120.0
    tells_loss: ClassVar[bool] = True  # under the mask, with the tensors
    running: "SecureSum | None" = field(default=None, init=False, repr=False)
    total: "Total | None" = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0.5 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must be above 0.5 and at most 1")
        self.encoding(2)

    def encoding(self, clients: int) -> FixedPoint:
        """How the numbers of so many clients become ring elements."""
        return FixedPoint(clients, self.clip, self.max_examples, self.bits)

    def contribution(
        self, state: State, received: State | None, examples: int, honest: int
    ) -> tuple[State, int]:
        """What a client puts into a sum of at least `honest` clients, and its weight there."""
        return state, examples

    def outcome(self, mean: State, origin: State) -> State:
        """The tensors that the mean of the contributions stands for."""
        return mean

    def ask(
        self, exchange: Exchange, messages: Sequence[Message], round_: int, deadline: float
    ) -> tuple[list[Message], dict[int, str]]:
        """Keys, shares, and the training requests; the replies carry masked uploads."""
        self.running = SecureSum(self, exchange, round_, TRAINED, deadline)
        return self.running.collect(messages)

    def accept(self, strategy: "AdapterStrategy", reply: Reply) -> Update:
        """A masked upload; its tensors mean nothing before all are added up."""
        assert self.running is not None
        vector = self.running.read(reply, strategy.state)
        masked = torch.from_numpy(vector.view(np.int64 if self.bits == 64 else np.int32))
        return Update(reply.client, {MASKED: masked}, 0, reply.metrics)

    def combine(self, strategy: "AdapterStrategy", updates: Sequence[Update]) -> State:
        """Unmask the sum of the uploads."""
        assert self.running is not None
        vectors = {update.client: _ring(update.state[MASKED]) for update in updates}
        mean, self.total = self.running.unmasked(vectors, strategy.state)
        self.running = None
        return combined(strategy, self.outcome(mean, strategy.state), updates)

    def mean(
        self,
        exchange: Exchange,
        messages: Sequence[Message],
        purpose: str,
        like: State,
        deadline: float,
    ) -> State:
        """The weighted mean of any named state that the messages ask for (round 0)."""
        running = SecureSum(self, exchange, 0, purpose, deadline)
        replies, problems = running.collect(messages)
        vectors: dict[int, Ring] = {}
        for reply in (read_reply(message.content) for message in replies):
            try:
                vectors[reply.client] = running.read(reply, like)
            except ValueError as refused:
                problems[reply.client] = str(refused)
                log(WARNING, "start: client %s refused: %s", reply.client, refused)
        return running.unmasked(vectors, like)[0]

    def measured(self) -> Metrics:
        """The clients' mean loss, which travels under the mask; private training tells none."""
        loss = 0.0 if self.total is None else float(self.total.mean[0])
        return {"loss": loss} if loss else {}


@dataclass
class SecureSum:
    """One sum over the clients of one round, on the server."""

    settings: Secagg
    exchange: Exchange
    round: int
    purpose: str
    deadline: float  # seconds that the uploads may take
    problems: dict[int, str] = field(default_factory=dict)
    sharers: list[int] = field(default_factory=list)

    def collect(self, messages: Sequence[Message]) -> tuple[list[Message], dict[int, str]]:
        """Run keys and shares, then send the messages to the clients that took part in both."""
        requests = {read_client(message): message for message in messages}
        needed = threshold(self.settings.threshold, len(requests))
        announced = self._stage(KEYS, {client: {} for client in requests}, needed)
        session = session_name(self.exchange.run, self.round, self.purpose)
        self.roster = Roster.read(session, needed, [a["keys"] for a in announced.values()])
        found, kind = len(self.roster.clients), "signed" if self.roster.signed else "not signed"
        log(INFO, "round %s: a secure sum of %s clients, keys %s", self.round, found, kind)
        about = {"roster": self.roster.entries(), "threshold": needed}
        sealed = self._stage(SHARES, dict.fromkeys(self.roster.clients, about), needed)
        self.sharers = sorted(sealed)
        for client in self.sharers:
            mailbox = {str(c): s["shares"][str(client)] for c, s in sealed.items() if c != client}
            extend(requests[client], {"mailbox": mailbox})
            detach(requests[client], self.exchange.held[client])
        uploads = [requests[client] for client in self.sharers]
        replies, problems = self.exchange.ask(uploads, self.round, self.deadline)
        self.problems |= problems
        return replies, self.problems

    def read(self, reply: Reply, like: State) -> Ring:
        """The masked vector of a reply; ValueError if it is none for tensors like these."""
        if reply.arrays is None or list(reply.arrays) != [MASKED]:
            raise ValueError("its reply carries no masked upload")
        if reply.extra.get("manifest") != text_hash(manifest(like)):
            raise ValueError("its tensors have other names, shapes or types than the run's")
        encoding = self.settings.encoding(len(self.roster.members))
        vector: Ring = np.asarray(reply.arrays[MASKED].numpy())
        if vector.dtype != encoding.dtype or vector.shape != (encoding.length(values(like)),):
            raise ValueError("its masked upload has the wrong length or type")
        return vector

    def unmasked(self, vectors: Mapping[int, Ring], like: State) -> tuple[State, Total]:
        """The weighted mean of the masked uploads, as tensors like these, and what came with it."""
        survivors = sorted(vectors)
        self._enough("sent a masked upload", len(survivors), self.roster.threshold)
        about: dict[str, Any] = {"survivors": survivors}
        helpers = survivors
        if self.roster.signed:
            said = self._stage(CONFIRM, dict.fromkeys(survivors, about), self.roster.threshold)
            helpers = sorted(said)
            about["confirmations"] = {str(c): said[c]["confirmation"] for c in helpers}
        reveals = self._stage(UNMASK, dict.fromkeys(helpers, about), 0)
        self._enough("helped to unmask the sum", len(reveals), self.roster.threshold)
        summed = add_up([vectors[client] for client in survivors])
        clear = unmask(summed, self.roster, self.sharers, survivors, reveals)
        total = self.settings.encoding(len(self.roster.members)).decode(clear)
        if total.clients != len(survivors):
            raise SecAggError("the masks did not cancel: a client sent a wrong vector or share.")
        if total.clipped:
            log(
                WARNING,
                "round %s: %s clients had numbers above aggregation.clip=%s, which were cut to it",
                *(self.round, total.clipped, self.settings.clip),
            )
        return unflatten(torch.from_numpy(total.mean[1:]), like), total

    def _stage(
        self, kind: str, about: Mapping[int, Mapping[str, Any]], needed: int
    ) -> dict[int, dict[str, Any]]:
        """Ask clients for their part in one stage; what each answered."""
        messages = [
            self.exchange.message(
                kind, client, self.round, extra={"purpose": self.purpose, **fields}
            )
            for client, fields in about.items()
        ]
        replies, problems = self.exchange.ask(messages, self.round, self.settings.stage_deadline)
        self.problems |= problems
        self._enough(f"took part in {kind.removeprefix('query.')}", len(replies), needed)
        found = [read_reply(reply.content) for reply in replies]
        return {reply.client: reply.extra for reply in found}

    def _enough(self, what: str, count: int, needed: int) -> None:
        if count < needed:
            reasons = "; ".join(f"client {c}: {why}" for c, why in sorted(self.problems.items()))
            raise TooFewRepliesError(
                f"round {self.round}: {count} clients {what} and secure aggregation needs {needed} "
                f"(aggregation.threshold={self.settings.threshold}): {reasons}"
            )


def session_name(run: str, round_: int, purpose: str) -> str:
    """What all keys of one sum are bound to."""
    return json.dumps([run, round_, purpose])


def extend(message: Message, extra: Mapping[str, Any]) -> None:
    """Add to what a request says besides its tensors."""
    record = message.content.config_records["request"]
    record["extra"] = json.dumps(json.loads(str(record["extra"])) | dict(extra))


def detach(message: Message, held: Collection[str]) -> None:
    """Take out of a request the pieces that its client was sent since it was made."""
    for digest in held:
        message.content.pop(f"piece.{digest}", None)
        message.content.pop(f"arrays.{digest}", None)


def values(state: State) -> int:
    """How many numbers an upload of this state has: the loss, and the state's own."""
    return 1 + sum(tensor.numel() for tensor in state.values())


def vector_of(state: State, loss: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """An upload's numbers as they are encoded."""
    return np.concatenate([[loss], flatten(state).numpy()])


def _ring(masked: torch.Tensor) -> Ring:
    array = masked.numpy()
    return array.view(np.uint64 if array.dtype == np.int64 else np.uint32)
