"""Meeting the nodes: a bounded wait, a number for each client, a sentence for who is left out."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Message
from local_grid import LocalGrid

from fedtuners.config import Config, to_json
from server_app import clients
from server_app.clients import meet, wait_for_nodes
from strategies.exchange import Exchange, TooFewRepliesError
from strategies.messages import read_request

Settings = Callable[..., Config]


def met(config: Config, grid: LocalGrid) -> Exchange:
    return meet(grid, "run", config, to_json(config))


def test_the_wait_for_nodes_is_bounded(settings: Settings) -> None:
    config = settings("federation.minimum_nodes=3", "federation.wait=0.3")
    started = time.monotonic()

    with pytest.raises(TooFewRepliesError, match=r"2 of 3 nodes came within 0 s: start more"):
        wait_for_nodes(LocalGrid(2), config)

    assert time.monotonic() - started < 5


def test_it_waits_for_a_node_that_comes_late(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(LocalGrid):
        def get_node_ids(self) -> Any:
            looks.append(1)
            return self.nodes[: len(looks)]

    looks: list[int] = []
    monkeypatch.setattr(clients, "POLL", 0.01)

    assert wait_for_nodes(Late(3), settings("federation.minimum_nodes=3")) == [1, 2, 3]


@pytest.mark.parametrize(("sites", "seconds"), [(None, 7), ([], 90)])
def test_a_node_of_a_run_that_goes_on_may_still_be_at_work(
    settings: Settings, sites: list[str] | None, seconds: float
) -> None:
    waited = []

    class Busy(LocalGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            waited.append(timeout)
            return super().send_and_receive(messages, timeout=timeout)

    config = settings("federation.wait=7", "federation.deadline=90")
    meet(Busy(2), "run", config, to_json(config), sites)

    assert waited == [pytest.approx(seconds, abs=1)]


def test_parts_of_the_data_are_dealt_to_the_nodes_in_turn(settings: Settings) -> None:
    nodes = {1: {"partition-id": 1}, 2: {"partition-id": 0}}

    exchange = met(settings("federation.clients=5"), LocalGrid(2, nodes))

    assert exchange.nodes == {0: 2, 1: 1, 2: 2, 3: 1, 4: 2}


def test_a_node_that_cannot_take_part_is_left_out(settings: Settings) -> None:
    nodes: dict[int, Any] = {1: {"partition-id": 0}, 2: {"data": "/nowhere/rows.jsonl"}}

    exchange = met(settings(), LocalGrid(2, nodes))

    assert set(exchange.nodes.values()) == {1}


def test_no_node_that_can_take_part_ends_the_run_with_each_reason(settings: Settings) -> None:
    nodes: dict[int, Any] = {1: {"data": "/nowhere/rows.jsonl"}, 2: {"dta": "x"}}

    with pytest.raises(TooFewRepliesError) as raised:
        met(settings(), LocalGrid(2, nodes))

    assert "node 1: /nowhere/rows.jsonl: no such file or folder" in str(raised.value)
    assert "node 2: node-config has no key 'dta'" in str(raised.value)


def test_silent_nodes_end_the_run_too(settings: Settings) -> None:
    def silent(request: Message, reply: Message) -> list[Message]:
        return []

    with pytest.raises(TooFewRepliesError, match="node 2: did not answer within 1 s"):
        met(settings(), LocalGrid(2, script=silent))


def test_after_meeting_every_client_is_sent_the_configuration_again(settings: Settings) -> None:
    """A client's number is new, and with it the folder where it keeps its pieces."""
    grid = LocalGrid(2)
    exchange = met(settings(), grid)

    message = exchange.message("train", 2, 1)

    assert set(read_request(message.content).attached) == {exchange.config}
