"""Questions and answers by a scripted grid: pieces once, lost ones again, odd answers refused."""

import re
from collections.abc import Callable, Iterable
from typing import Any
from weakref import ref

import pytest
import torch
from federation import connected
from flwr.app import DEFAULT_TTL, ConfigRecord, Error, Message, RecordDict
from local_grid import LocalGrid, Script, falsified, puppet, trained

from fedtuners.adapters import Lora
from strategies.algebra import State
from strategies.exchange import Exchange
from strategies.fedavg_lora import FedAvgLora
from strategies.messages import (
    FAILED,
    MISSING,
    TRAIN,
    Piece,
    Reply,
    Request,
    content_bytes,
    read_reply,
    read_request,
)
from strategies.packing import content_hash, manifest, pack

STATE: State = {"x.lora_B": torch.ones(3, 2)}
FROZEN: State = {"x.lora_A": torch.ones(2, 5)}
KEY = content_hash(FROZEN)[:16]


def exchange(grid: LocalGrid, clients: int = 3) -> Exchange:
    nodes = {client: grid.nodes[client % len(grid.nodes)] for client in range(clients)}
    made = Exchange.create(grid, "run", nodes, "{}")
    made.pieces[KEY] = Piece(manifest(FROZEN), pack(FROZEN))
    return made


def ask(talk: Exchange, round_: int = 1) -> tuple[list[int], dict[int, str]]:
    messages = [talk.message(TRAIN, client, round_, pieces=[KEY]) for client in talk.nodes]
    answers, problems = talk.ask(messages, round_, deadline=5)
    return [read_reply(answer.content).client for answer in answers], problems


def test_a_message_lives_as_long_as_its_round() -> None:
    grid = LocalGrid(1, client=puppet(obedient))
    talk = exchange(grid, clients=1)

    for deadline in (5, 100_000):
        talk.ask([talk.message(TRAIN, 0, 1)], 1, deadline=deadline)

    short, long = (message.metadata.ttl for message in grid.sent)
    assert short == DEFAULT_TTL
    assert 100_000 <= long < 100_100


def obedient(request: Request) -> Reply:
    return trained(request, STATE)


def scripted(change: Callable[[Message, Message], list[Message]], client: int = 1) -> Script:
    """A script that changes what one client answers."""

    def script(request: Message, reply: Message) -> list[Message]:
        asked = read_request(request.content).client
        return change(request, reply) if asked == client else [reply]

    return script


def foreign(reply: Message) -> Message:
    changed = falsified(reply)
    changed.__dict__["_content"] = RecordDict({"reply": ConfigRecord({"client": 1})})
    return changed


REFUSALS: dict[str, tuple[Callable[[Message, Message], list[Message]], str]] = {
    "missing": (lambda request, reply: [], "did not answer within 5 s"),
    "error": (
        lambda request, reply: [Message(Error(2, "secret row 17"), reply_to=request)],
        r"its process failed \(Flower error 2\)",
    ),
    "late": (lambda request, reply: [falsified(reply, round=0)], "answered for round 0"),
    "in another's name": (
        lambda request, reply: [falsified(reply, client=2)],
        "another node answered in its name",
    ),
    "another project's": (lambda request, reply: [foreign(reply)], "not from fedtuners"),
    "another build's": (
        lambda request, reply: [falsified(reply, **{"from": "fedtuners/1 0.0.9 old"})],
        "install the same version",
    ),
    "unreadable": (lambda request, reply: [falsified(reply, extra="{")], "cannot be read"),
    "failed": (
        lambda request, reply: [falsified(reply, status="failed", error="no such file")],
        "no such file",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_an_odd_answer_is_refused_and_the_others_count(name: str) -> None:
    change, sentence = REFUSALS[name]
    grid = LocalGrid(2, script=scripted(change), client=puppet(obedient))

    good, problems = ask(exchange(grid))

    assert good == [0, 2]
    assert list(problems) == [1]
    assert re.search(sentence, problems[1])
    assert "secret" not in problems[1]


def test_an_answer_from_another_node_is_refused() -> None:
    def impostor(request: Message, reply: Message) -> list[Message]:
        reply.metadata.__dict__["_src_node_id"] = 99
        return [reply]

    grid = LocalGrid(2, script=scripted(impostor), client=puppet(obedient))

    good, problems = ask(exchange(grid))

    assert (good, list(problems)) == ([0, 2], [1])
    assert "another node" in problems[1]


@pytest.mark.parametrize("first", ["good", "bad"])
def test_only_the_first_answer_counts(first: str) -> None:
    def twice(request: Message, reply: Message) -> list[Message]:
        bad = falsified(reply, round=9)
        return [reply, bad] if first == "good" else [bad, reply]

    grid = LocalGrid(2, script=scripted(twice), client=puppet(obedient))

    good, problems = ask(exchange(grid))

    assert good == ([0, 1, 2] if first == "good" else [0, 2])
    assert list(problems) == ([] if first == "good" else [1])


def test_an_answer_to_nobody_is_left_out() -> None:
    def stray(request: Message, reply: Message) -> list[Message]:
        lost = falsified(reply)
        lost.__dict__["_metadata"] = type("Metadata", (), {"reply_to_message_id": "of yesterday"})()
        return [lost, reply]

    grid = LocalGrid(2, script=stray, client=puppet(obedient))

    assert ask(exchange(grid)) == ([0, 1, 2], {})


def test_answers_come_in_the_order_of_the_clients() -> None:
    class Hasty(LocalGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            return reversed(list(super().send_and_receive(messages, timeout=timeout)))

    assert ask(exchange(Hasty(2, client=puppet(obedient))))[0] == [0, 1, 2]


def attached(grid: LocalGrid) -> list[set[str]]:
    return [set(read_request(message.content).attached) for message in grid.sent]


def test_a_piece_is_sent_once_to_each_client() -> None:
    grid = LocalGrid(2, client=puppet(obedient))
    talk = exchange(grid)

    ask(talk, 1)
    ask(talk, 2)

    assert attached(grid) == [{talk.config, KEY}] * 3 + [set()] * 3


def test_who_did_not_answer_is_sent_the_pieces_again() -> None:
    silent = scripted(lambda request, reply: [])
    grid = LocalGrid(2, script=silent, client=puppet(obedient))
    talk = exchange(grid)

    ask(talk, 1)
    ask(talk, 2)

    assert attached(grid)[3:] == [set(), {talk.config, KEY}, set()]


def forgetful(times: int) -> Callable[[Request], Reply]:
    left = [times]

    def answer(request: Request) -> Reply:
        if request.client == 1 and request.round == 2 and left[0]:
            left[0] -= 1
            return Reply(request.client, request.round, MISSING, [KEY])
        return trained(request, STATE)

    return answer


def test_a_lost_piece_is_sent_again_in_the_same_round() -> None:
    grid = LocalGrid(2, client=puppet(forgetful(1)))
    talk = exchange(grid)

    ask(talk, 1)
    good, problems = ask(talk, 2)

    assert (good, problems) == ([0, 1, 2], {})
    assert attached(grid)[3:] == [set(), set(), set(), {KEY}]


def test_a_piece_lost_twice_in_a_round_is_a_problem() -> None:
    grid = LocalGrid(2, client=puppet(forgetful(2)))
    talk = exchange(grid)

    ask(talk, 1)
    good, problems = ask(talk, 2)

    assert good == [0, 2]
    assert problems == {1: "lost what it was sent, twice in one round"}
    assert ask(talk, 3)[0] == [0, 1, 2]


def test_who_asks_again_and_falls_silent_did_not_answer() -> None:
    def silent(request: Message, reply: Message) -> list[Message]:
        return [] if KEY in read_request(request.content).attached and asked else [reply]

    asked: list[int] = []
    grid = LocalGrid(2, script=silent, client=puppet(forgetful(1)))
    talk = exchange(grid)
    ask(talk, 1)
    asked.append(1)

    good, problems = ask(talk, 2)

    assert good == [0, 2]
    assert problems == {1: "did not answer within 5 s"}


def test_bytes_are_the_sizes_of_the_messages() -> None:
    grid = LocalGrid(2, client=puppet(forgetful(1)))
    talk = exchange(grid)

    ask(talk, 1)
    ask(talk, 2)

    sizes: dict[tuple[int, int], int] = {}
    for message, reply in zip(grid.sent[:3], grid.replies[:3], strict=True):
        client = read_request(message.content).client
        sizes[1, client] = content_bytes(message.content)
        assert talk.traffic.up[1][client] == content_bytes(reply.content)
    for client in range(3):
        config = talk.traffic.down[0][client]
        assert config + talk.traffic.down[1][client] == sizes[1, client]
    total = sum(talk.traffic.down[2].values())
    assert total == sum(content_bytes(message.content) for message in grid.sent[3:])
    assert talk.traffic.up[2][1] == sum(
        content_bytes(reply.content)
        for message, reply in zip(grid.sent[3:], grid.replies[3:], strict=True)
        if read_request(message.content).client == 1
    )


def test_the_configuration_counts_as_the_start() -> None:
    grid = LocalGrid(2, client=puppet(obedient))
    talk = exchange(grid)
    talk.start.add(KEY)

    ask(talk, 1)

    frozen = 4 * sum(tensor.numel() for tensor in FROZEN.values())
    assert all(size > frozen for size in talk.traffic.down[0].values())
    assert all(size < talk.traffic.down[0][0] + 1000 for size in talk.traffic.down[1].values())


# --- many clients ------------------------------------------------------------------------------


class Crowd(LocalGrid):
    """Remembers how many were asked together, and how many of their answers were alive at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(1, *args, **kwargs)
        self.groups: list[int] = []
        self.deadlines: list[float] = []
        self.answers: list[ref[RecordDict]] = []
        self.most = 0

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        asked = list(messages)
        self.groups.append(len(asked))
        self.deadlines.append(timeout or 0)
        answers = [self.answer(message) for message in asked]
        self.answers += [ref(answer.content) for answer in answers]
        self.most = max(self.most, sum(answer() is not None for answer in self.answers))
        return answers


def test_many_clients_are_asked_in_groups_and_nobody_holds_all_answers() -> None:
    grid = Crowd(client=puppet(obedient))
    strategy = connected(FedAvgLora(Lora(rank=2)), STATE, grid, clients=25, at_once=10)

    strategy.start(grid, strategy.packed(), 1, timeout=60)

    assert grid.groups == [10, 10, 5]
    assert grid.most <= 2 * 10  # a group, and what is left of the one before it
    assert [round(seconds) for seconds in grid.deadlines] == [24, 48, 60]
    assert strategy.report.updates[-1].client == 24
    assert [update.client for update in strategy.report.updates] == list(range(25))


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_the_result_does_not_depend_on_the_groups(at_once: int) -> None:
    def drawn(request: Request) -> Reply:
        draw = torch.Generator().manual_seed(request.client)
        return trained(request, {"x.lora_B": torch.randn(3, 2, generator=draw)}, request.client + 1)

    results = []
    for size in (at_once, 7):
        grid = Crowd(client=puppet(drawn))
        strategy = connected(FedAvgLora(Lora(rank=2)), STATE, grid, clients=7, at_once=size)
        strategy.start(grid, strategy.packed(), 1, timeout=60)
        results.append(strategy.state["x.lora_B"])

    assert torch.equal(*results)


def test_a_client_that_fails_in_an_early_group_is_told_of_and_the_others_are_asked() -> None:
    def answer(request: Request) -> Reply:
        if request.client == 0:
            return Reply(0, request.round, FAILED, error="no rows")
        return obedient(request)

    grid = Crowd(client=puppet(answer))
    strategy = connected(FedAvgLora(Lora(rank=2)), STATE, grid, clients=6, at_once=2)

    strategy.start(grid, strategy.packed(), 1, timeout=60)

    assert strategy.report.problems == {0: "no rows"}
    assert len(strategy.report.updates) == 5
