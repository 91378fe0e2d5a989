"""Robust rules: false clients drag the plain mean, and not these; honest clients lose little."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from federation import connected
from local_grid import LocalGrid, puppet, trained

from fedtuners.adapters import Lora
from fedtuners.config import ConfigError, make_adapter
from strategies.aggregation import Mean, make_aggregation
from strategies.algebra import State
from strategies.fedavg_lora import FedAvgLora
from strategies.fedex_lora import FedExLora
from strategies.messages import Reply, Request
from strategies.robust import Krum, Median, TrimmedMean

START: State = {"q.lora_A": torch.full((2, 5), 0.5), "q.lora_B": torch.zeros(3, 2)}
RULES = [Median(), TrimmedMean(fraction=0.3), Krum(malicious=2), Krum(malicious=2, selected=3)]


def honest(client: int) -> State:
    """A change of about +0.1 everywhere."""
    draw = torch.Generator().manual_seed(client)
    return {
        name: tensor + 0.1 + 0.01 * torch.randn(tensor.shape, generator=draw)
        for name, tensor in START.items()
    }


def flipped(client: int) -> State:
    """The change with its sign turned and grown tenfold."""
    return {
        name: START[name] - 10 * (tensor - START[name]) for name, tensor in honest(client).items()
    }


def scaled(client: int) -> State:
    """The change a thousand times too large."""
    return {
        name: START[name] + 1000 * (tensor - START[name]) for name, tensor in honest(client).items()
    }


def constant(client: int) -> State:
    """Colluding: all false clients send the same."""
    return {name: torch.full_like(tensor, -3.0) for name, tensor in START.items()}


def aggregate(
    rule: Mean, attack: Callable[[int], State] | None, false: int = 2, clients: int = 7
) -> State:
    """The global tensors after a round in which the first clients are false."""

    def answer(request: Request) -> Reply:
        client = request.client
        state = attack(client) if attack and client < false else honest(client)
        # A false client also claims to have seen far more examples.
        examples = 10_000 if attack and client < false else 10
        return trained(request, state, examples)

    strategy = FedAvgLora(Lora(rank=2))
    strategy.aggregation = rule
    grid = LocalGrid(clients, client=puppet(answer))
    connected(strategy, START, grid, clients)
    strategy.start(grid, strategy.packed(), 1)
    return strategy.state


def distance(state: State) -> float:
    """Largest distance from the honest change."""
    return max(float((state[name] - START[name] - 0.1).abs().max()) for name in START)


@pytest.mark.parametrize("attack", [flipped, scaled, constant])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_false_clients_drag_the_mean_and_no_robust_rule(
    rule: Mean, attack: Callable[[int], State]
) -> None:
    assert distance(aggregate(Mean(), attack)) > 1.0
    assert distance(aggregate(rule, attack)) < 0.04


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_honest_clients_lose_little(rule: Mean) -> None:
    assert distance(aggregate(rule, None)) < 0.04


def test_more_false_clients_than_assumed_win() -> None:
    """The protection has the limit it states."""
    assert distance(aggregate(Krum(malicious=1), constant, false=4)) > 1.0
    assert distance(aggregate(Median(), constant, false=4)) > 1.0


def test_rules_against_their_definitions() -> None:
    vectors = np.random.default_rng(0).normal(size=(7, 4))
    ordered = np.sort(vectors, axis=0)
    assert np.array_equal(Median().rule(vectors), ordered[3])
    assert np.allclose(Median().rule(vectors[:6]), np.sort(vectors[:6], axis=0)[2:4].mean(0))
    assert np.allclose(TrimmedMean(fraction=0.3).rule(vectors), ordered[2:-2].mean(axis=0))
    squared = ((vectors[:, None] - vectors[None]) ** 2).sum(-1)
    nearest = np.sort(squared, axis=1)[:, 1 : 7 - 2 - 2 + 1]  # n − f − 2 others
    order = np.argsort(nearest.sum(axis=1))
    assert np.allclose(Krum(malicious=2).rule(vectors), vectors[order[0]])
    assert np.allclose(Krum(malicious=2, selected=3).rule(vectors), vectors[order[:3]].mean(0))


def test_krum_does_not_lose_small_changes_of_large_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In float32, ‖x‖² + ‖y‖² − 2xy of the weights themselves would be rounding alone."""
    monkeypatch.setitem(START, "q.lora_A", START["q.lora_A"] + 1000.0)
    assert distance(aggregate(Krum(malicious=2), flipped)) < 0.04


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_the_order_of_clients_does_not_matter(rule: Any) -> None:
    vectors = np.random.default_rng(1).normal(size=(7, 4))
    assert np.allclose(rule.rule(vectors), rule.rule(vectors[::-1]))


@pytest.mark.parametrize(
    ("rule", "clients", "words"),
    [
        (Median(), 2, "median needs at least 3"),
        (TrimmedMean(fraction=0.2), 4, "leaves none out"),
        (Krum(malicious=1), 4, "malicious=1 needs at least 5"),
        (Krum(malicious=1, selected=6), 6, "needs at least 7"),
    ],
)
def test_too_few_clients_are_refused_rather_than_unprotected(
    rule: Any, clients: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        rule.rule(np.zeros((clients, 2)))


@pytest.mark.parametrize("choice", ["median", "trimmed_mean", "krum", "central_dp"])
def test_methods_that_need_single_uploads_are_refused(
    settings: Callable[..., Any], choice: str
) -> None:
    config = settings(f"aggregation={choice}", "strategy=fedex_lora", "adapter=lora")
    with pytest.raises(ConfigError, match=f"aggregation={choice} .*=fedex_lora needs each client"):
        make_aggregation(config).check(FedExLora(make_adapter(config)), config)


def test_a_start_from_sketches_uses_the_rule_too(federation: Callable[..., Any]) -> None:
    made = federation("aggregation=median", "strategy=fed_sb", "start.source=clients")
    made.rounds(1)
    assert made.strategy.completed == 1
    states = [{"Y": torch.full((2, 2), value)} for value in (1.0, 2.0, 900.0)]
    assert torch.equal(Median().reduce(states, [1, 1, 1])["Y"], torch.full((2, 2), 2.0))
