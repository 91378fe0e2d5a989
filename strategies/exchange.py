"""One question to many clients and their answers: addressing, pieces, bytes, and refusals.

Clients are numbered 0 … n−1. In a simulation they are parts of one data set, dealt round the nodes;
in a deployment each is one site. An exchange sends every client the pieces it does not yet hold,
sends them again to one that lost them, counts what really travels, and refuses an answer that comes
twice, late, from the wrong node, or from other code.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from logging import INFO, WARNING
from typing import Any

from flwr.app import DEFAULT_TTL, ArrayRecord, Message, RecordDict
from flwr.common import log
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from strategies.messages import (
    MISSING,
    OK,
    ForeignMessageError,
    Piece,
    Reply,
    Request,
    attach,
    content_bytes,
    read_reply,
    record_bytes,
    text_hash,
)


class TooFewRepliesError(RuntimeError):
    """A round with fewer good answers than the run insists on."""


@dataclass
class Traffic:
    """Bytes counted from the messages themselves: total[round][client] for each direction."""

    down: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    up: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))

    def add(
        self, direction: dict[int, dict[int, int]], round_: int, client: int, size: int
    ) -> None:
        """Count `size` bytes to or from a client in a round (round 0 is the start)."""
        direction[round_][client] = direction[round_].get(client, 0) + size


@dataclass
class Exchange:
    """Everything the server needs to talk to the clients of one run."""

    grid: Grid
    run: str
    nodes: dict[int, int]  # client → the Flower node that answers for it
    config: str  # content hash of the configuration, which is a piece like any other
    pieces: dict[str, Piece] = field(default_factory=dict)  # content hash → what to send
    sites: list[str] = field(default_factory=list)  # who client 0, 1, … is, if it has own rows
    held: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    start: set[str] = field(default_factory=set)  # pieces whose bytes belong to the start
    at_once: int = 100  # clients that are asked, and whose answers are held, at the same time
    traffic: Traffic = field(default_factory=Traffic)

    @classmethod
    def create(cls, grid: Grid, run: str, nodes: dict[int, int], config: str) -> "Exchange":
        """An exchange whose first piece is the configuration's text."""
        digest = text_hash(config)
        return cls(grid, run, nodes, digest, pieces={digest: Piece(config)}, start={digest})

    def renumber(self, nodes: dict[int, int]) -> None:
        """Give every client its node once the nodes have said what they hold."""
        self.nodes = nodes
        self.held.clear()

    def message(
        self,
        kind: str,
        client: int,
        round_: int,
        *,
        pieces: Sequence[str] = (),
        arrays: ArrayRecord | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Message:
        """A request for one client, with the pieces it is not known to hold attached."""
        request = self.request(client, round_, pieces, arrays, extra)
        return Message(request.content(), self.nodes[client], kind, group_id=str(round_))

    def request(
        self,
        client: int,
        round_: int,
        pieces: Sequence[str] = (),
        arrays: ArrayRecord | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Request:
        """What a message to a client says."""
        needed = [self.config, *pieces]
        return Request(
            run=self.run,
            client=client,
            clients=len(self.nodes),
            round=round_,
            pieces=list(pieces),
            config=self.config,
            attached={key: self.pieces[key] for key in needed if key not in self.held[client]},
            arrays=arrays,
            extra=dict(extra or {}),
        )

    def ask(
        self, messages: Iterable[Message], round_: int, deadline: float
    ) -> tuple[list[Message], dict[int, str]]:
        """Send, wait until `deadline` seconds have passed, and sort the answers.

        Returns the good replies in order of client, and one sentence per client without one.
        """
        until = time.monotonic() + deadline
        sent = {read_client(message): message for message in messages}
        answers, problems = self._send(sent, round_, until)
        lost = {c: reply for c, (reply, _) in answers.items() if reply.status == MISSING}
        if lost:
            answers = {c: answer for c, answer in answers.items() if c not in lost}
            again = {client: self._completed(sent[client], lost[client]) for client in lost}
            repeated, more = self._send(again, round_, until)
            answers |= repeated
            problems |= more
        good = {c: answer for c, (reply, answer) in answers.items() if reply.status == OK}
        for client, (reply, _) in answers.items():
            if reply.status != OK:
                problems[client] = reply.error or "lost what it was sent, twice in one round"
        for client in sent.keys() - good.keys():
            problems.setdefault(client, f"did not answer within {deadline:.0f} s")
        for client, problem in sorted(problems.items()):
            log(WARNING, "round %s: client %s: %s", round_, client, problem)
        return [good[client] for client in sorted(good)], problems

    def ask_in_turn(
        self, messages: Sequence[Message], round_: int, deadline: float
    ) -> tuple[Iterator[Message], dict[int, str]]:
        """Ask `at_once` clients after another, each such group for its part of the deadline.

        The good replies come while they are iterated over, in order of client; the problems are
        complete when they have all come. Nobody holds more than a group's answers.
        """
        problems: dict[int, str] = {}

        def replies() -> Iterator[Message]:
            started, asked = time.monotonic(), 0
            for first in range(0, len(messages), self.at_once):
                group = messages[first : first + self.at_once]
                asked += len(group)
                until = started + deadline * asked / len(messages)
                good, found = self.ask(group, round_, max(until - time.monotonic(), 0.1))
                problems.update(found)
                while good:
                    yield good.pop(0)

        return replies(), problems

    def _completed(self, message: Message, reply: Reply) -> Message:
        """The same message with the pieces that the client says it lost."""
        log(INFO, "client %s asks again for %s", reply.client, " ".join(reply.missing))
        content = RecordDict(dict(message.content.items()))
        for digest in reply.missing:
            if digest in self.pieces:
                attach(content, digest, self.pieces[digest])
        return Message(
            content,
            message.metadata.dst_node_id,
            message.metadata.message_type,
            group_id=message.metadata.group_id,
        )

    def _send(
        self, sent: dict[int, Message], round_: int, until: float
    ) -> tuple[dict[int, tuple[Reply, Message]], dict[int, str]]:
        left = max(until - time.monotonic(), 0.1)
        for client, message in sent.items():
            self._count_down(round_, client, message)
            # Flower forgets a message after half a day; a round may last longer.
            age = time.time() - message.metadata.created_at
            message.metadata.ttl = max(DEFAULT_TTL, age + left)
        answers = self.grid.send_and_receive(list(sent.values()), timeout=left)
        asked = {message.metadata.message_id: client for client, message in sent.items()}
        replies: dict[int, tuple[Reply, Message]] = {}
        problems: dict[int, str] = {}
        for answer in answers:
            found = asked.get(answer.metadata.reply_to_message_id)
            if found is None or found in replies or found in problems:
                log(WARNING, "round %s: an answer nobody waits for was left out", round_)
                continue
            client = found
            try:
                reply = self._read(answer, client, round_)
                self._learn(reply, sent[client])
                replies[client] = (reply, answer)
            except ValueError as refused:
                problems[client] = str(refused)
        return replies, problems

    def _count_down(self, round_: int, client: int, message: Message) -> None:
        """Pieces that every run of the method must send first count as the start's, round 0."""
        first = sum(
            record_bytes(record)
            for name, record in message.content.items()
            if name.partition(".")[2] in self.start
        )
        self.traffic.add(self.traffic.down, 0, client, first)
        rest = content_bytes(message.content) - first
        self.traffic.add(self.traffic.down, round_, client, rest)

    def _read(self, answer: Message, client: int, round_: int) -> Reply:
        if answer.has_error():
            away = answer.error.code == ErrorCode.NODE_UNAVAILABLE
            what = "its node went away" if away else "its process failed"
            raise ValueError(f"{what} (Flower error {answer.error.code})")
        self.traffic.add(self.traffic.up, round_, client, content_bytes(answer.content))
        reply = read_reply(answer.content)
        if answer.metadata.src_node_id != self.nodes[client] or reply.client != client:
            raise ForeignMessageError("another node answered in its name")
        if reply.round != round_:
            raise ValueError(f"answered for round {reply.round}")
        return reply

    def _learn(self, reply: Reply, message: Message) -> None:
        """Remember what the client holds now, from what it was sent and what it says."""
        attached = (name for name in message.content if name.startswith("piece."))
        self.held[reply.client].update(name.removeprefix("piece.") for name in attached)
        self.held[reply.client].difference_update(reply.missing)


def read_client(message: Message) -> int:
    """The client a request is for."""
    return int(message.content.config_records["request"]["client"])  # type: ignore[arg-type]
