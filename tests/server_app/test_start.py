"""LoRA-SB's start from the clients, the server or public rows: the same for all, and guarded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from federation import Federation
from flwr.app import Message
from local_grid import LocalGrid, falsified

from fedtuners.adapters import by_module
from strategies.exchange import TooFewRepliesError
from strategies.messages import SKETCH, read_reply, read_request
from strategies.packing import pack

Made = Callable[..., Federation]


@pytest.mark.parametrize("source", ["clients", "server", "public"])
def test_bases_are_orthonormal_and_the_core_is_descending(
    federation: Made, tiny: Any, source: str
) -> None:
    public = [f"start.data={tiny / 'rows.jsonl'}"] if source == "public" else []

    made = federation("strategy=fed_sb", f"start.source={source}", *public)

    (frozen,) = made.strategy.shared.values()
    for factors in by_module(made.strategy.state | frozen).values():
        A, B = factors["lora_sb_A"].double(), factors["lora_sb_B"].double()
        R = factors["lora_sb_R"]
        torch.testing.assert_close(A @ A.T, torch.eye(4).double(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(B.T @ B, torch.eye(4).double(), atol=1e-5, rtol=1e-5)
        assert torch.equal(R, torch.diag(R.diagonal()))
        assert torch.equal(R.diagonal(), R.diagonal().sort(descending=True).values)
    asked = [m for m in made.grid.sent if m.metadata.message_type == SKETCH]
    assert len(asked) == (6 if source == "clients" else 0)


def test_the_start_is_in_the_bytes_of_round_zero(federation: Made) -> None:
    made = federation("strategy=fed_sb")
    sketches = sum(made.exchange.traffic.up[0].values())

    made.rounds(1)

    down = made.exchange.traffic.down
    frozen = sum(4 * t.numel() for state in made.strategy.shared.values() for t in state.values())
    assert all(size > frozen for size in down[0].values())
    assert all(size < frozen for size in down[1].values())
    numbers = sum(4 * (m + n) * 12 for m, n in made.tuned.shapes.values())
    assert sketches > numbers / 2


def spoilt(kind: str, spoiled: int = 1) -> Callable[[Message, Message], list[Message]]:
    def script(request: Message, reply: Message) -> list[Message]:
        if (
            request.metadata.message_type != SKETCH
            or read_request(request.content).client != spoiled
        ):
            return [reply]
        if kind == "silent":
            return []
        arrays = read_reply(reply.content).arrays
        assert arrays is not None
        numbers = torch.from_numpy(arrays["float32"].numpy().copy())
        if kind == "NaN":
            numbers[3] = torch.nan
        if kind == "short":
            numbers = numbers[:-1]
        if kind == "unnamed":
            return [falsified(reply, extra="{}")]
        return [falsified(reply, arrays=pack({"x": numbers}))]

    return script


@pytest.mark.parametrize("kind", ["silent", "NaN", "short", "unnamed"])
def test_a_bad_sketch_is_refused_and_the_start_goes_on(federation: Made, kind: str) -> None:
    made = federation("strategy=fed_sb", grid=LocalGrid(2, script=spoilt(kind)))

    assert all(bool(torch.isfinite(value).all()) for value in made.strategy.state.values())
    made.rounds(1)
    assert {update.client for update in made.reports[1].updates} == {0, 1, 2}


def test_a_start_below_the_minimum_names_the_clients(federation: Made) -> None:
    grid = LocalGrid(2, script=spoilt("NaN"))

    with pytest.raises(TooFewRepliesError, match=r"the start has 2 good .* client 1: tensor .*NaN"):
        federation("strategy=fed_sb", "federation.minimum_replies=3", grid=grid)
