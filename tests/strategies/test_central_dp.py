"""Central and distributed DP: sensitivity, noise, equal weights, and ε against other formulas."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from federation import connected
from local_grid import LocalGrid, puppet, trained
from scipy.optimize import brentq
from scipy.stats import norm

from fedtuners.adapters import Lora
from fedtuners.config import ConfigError, make_adapter
from strategies.aggregation import make_aggregation
from strategies.algebra import State
from strategies.base import strategy_class
from strategies.central_dp import CentralDp, clipped, gaussian, spent
from strategies.distributed_dp import DistributedDp
from strategies.fedavg_lora import FedAvgLora
from strategies.messages import Reply, Request
from strategies.vectors import flatten

START: State = {"q.lora_A": torch.full((20, 50), 0.5), "q.lora_B": torch.zeros(30, 20)}
Made = Callable[..., Any]


def after_rounds(
    aggregation: CentralDp, change: Callable[[int], float], rounds: int = 1
) -> FedAvgLora:
    """A run in which client i changes every number by change(i)."""

    def answer(request: Request) -> Reply:
        state = {name: tensor + change(request.client) for name, tensor in START.items()}
        return trained(request, state, examples=1 + 1000 * request.client)

    strategy = FedAvgLora(Lora(rank=2))
    strategy.aggregation = aggregation
    grid = LocalGrid(3, client=puppet(answer))
    connected(strategy, START, grid, 3)
    strategy.start(grid, strategy.packed(), rounds)
    return strategy


def change_of(strategy: FedAvgLora) -> torch.Tensor:
    return flatten(strategy.state) - flatten(START)


def test_without_noise_it_is_the_equal_mean_of_clipped_changes() -> None:
    """Weights by num-examples, which the clients claim, would change the sensitivity."""
    strategy = after_rounds(CentralDp(clip_norm=1.0, noise_multiplier=1e-9), lambda i: 0.01 * i)
    numbers = len(flatten(START))
    norms = [min(1.0, 0.01 * i * math.sqrt(numbers)) for i in range(3)]
    expected = sum(norms) / 3 / math.sqrt(numbers)
    assert torch.allclose(change_of(strategy), torch.full((numbers,), expected).double(), atol=1e-7)


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 1e6])
def test_no_client_moves_the_sum_by_more_than_the_clip(size: float) -> None:
    change = torch.full((40,), size).double()
    assert float(clipped(change, 0.5).norm()) <= 0.5 + 1e-12
    if float(change.norm()) <= 0.5:
        assert torch.equal(clipped(change, 0.5), change)


def test_the_noise_on_the_mean_is_sigma_s_over_n_and_new_in_every_round() -> None:
    quiet = [change_of(after_rounds(CentralDp(0.5, 2.0), lambda _: 0.0)) for _ in range(2)]
    for noise in quiet:
        assert float(noise.std()) == pytest.approx(2.0 * 0.5 / 3, rel=0.1)
        assert abs(float(noise.mean())) < 0.05
    assert float((quiet[0] - quiet[1]).norm()) > 1.0  # the run's seed does not touch it


def test_noise_is_normal() -> None:
    noise = gaussian(200_000, 2.0)
    ordered = noise.sort().values.numpy()
    quantiles = norm.ppf([0.001, 0.1, 0.5, 0.9, 0.999], scale=2.0)
    found = [ordered[int(q * len(ordered))] for q in (0.001, 0.1, 0.5, 0.9, 0.999)]
    assert found == pytest.approx(quantiles, abs=0.15)
    assert float(noise.std()) == pytest.approx(2.0, rel=0.01)


def closed_rdp(sigma: float, rounds: int, delta: float) -> float:
    """ε from RDP ε(α) = αT/2σ², converted by Canonne et al. (arXiv:2004.00010), proposition 12."""
    orders = [1 + step / 100 for step in range(1, 30_000)]
    return min(
        a * rounds / (2 * sigma**2) + math.log1p(-1 / a) - math.log(delta * a) / (a - 1)
        for a in orders
    )


def exact_gaussian(sigma: float, rounds: int, delta: float) -> float:
    """ε of the composed Gaussian mechanism: Balle and Wang, arXiv:1805.06530, theorem 8."""
    mu = math.sqrt(rounds) / sigma

    def gap(epsilon: float) -> float:
        high = norm.cdf(mu / 2 - epsilon / mu)
        low = norm.logcdf(-mu / 2 - epsilon / mu)
        return float(high - math.exp(epsilon + low) - delta)

    return float(brentq(gap, 0.0, 500.0))


@pytest.mark.parametrize(("sigma", "rounds"), [(1.0, 1), (1.0, 100), (5.0, 40), (20.0, 10)])
def test_epsilon_against_two_other_formulas(sigma: float, rounds: int) -> None:
    reported = spent(sigma, rounds, 1e-5)["client_epsilon"]
    assert reported == pytest.approx(closed_rdp(sigma, rounds, 1e-5), rel=0.02)
    exact = exact_gaussian(sigma, rounds, 1e-5)
    assert exact <= reported <= 1.25 * exact


def test_known_epsilon() -> None:
    """σ = 1, 100 rounds, δ = 1e-5, no amplification."""
    assert spent(1.0, 100, 1e-5)["client_epsilon"] == pytest.approx(96.1, abs=0.2)


def test_epsilon_grows_over_the_rounds_and_is_reported() -> None:
    strategy = after_rounds(CentralDp(1.0, 3.0), lambda _: 0.0, rounds=3)
    together = strategy.report.together
    assert together == spent(3.0, 3, 1e-5)
    assert together["client_epsilon"] > spent(3.0, 1, 1e-5)["client_epsilon"]


@pytest.mark.parametrize("choice", ["central_dp", "distributed_dp"])
def test_what_would_make_epsilon_false_is_refused(settings: Made, choice: str) -> None:
    def check(*overrides: str) -> None:
        config = settings(f"aggregation={choice}", *overrides)
        strategy = strategy_class(config)(make_adapter(config))
        make_aggregation(config).check(strategy, config)

    ok = ("strategy=fed_sb", "start.source=server")
    check(*ok)
    with pytest.raises(ConfigError, match=r"sketches without noise.*choose start.source=public"):
        check("strategy=fed_sb", "start.source=clients")
    with pytest.raises(ConfigError, match=r"must be below 1/federation.clients = 1/3"):
        check(*ok, "aggregation.delta=0.34")
    with pytest.raises(ConfigError, match="above 0"):
        check(*ok, "aggregation.noise_multiplier=0")
    with pytest.raises(ConfigError, match="fedex_lora needs each client's own factors"):
        check("strategy=fedex_lora", "adapter=lora")


def test_distributed_noise_adds_up_to_the_central_one_in_the_smallest_sum() -> None:
    aggregation = DistributedDp(noise_multiplier=2.0, clip_norm=0.5)
    honest = 4
    total = torch.zeros(len(flatten(START)))
    for _ in range(honest):
        given, weight = aggregation.contribution(START, START, 17, honest)
        total = total + flatten(given)
        assert weight == 1
    assert float(total.std()) == pytest.approx(2.0 * 0.5, rel=0.1)


def test_distributed_contributions_are_clipped() -> None:
    aggregation = DistributedDp(noise_multiplier=1e-9, clip_norm=0.5)
    far = {name: tensor + 10 for name, tensor in START.items()}
    given, _ = aggregation.contribution(far, START, 17, 3)
    assert float(flatten(given).norm()) == pytest.approx(0.5, rel=1e-6)


def test_a_distributed_run_ends_where_the_central_one_does(federation: Made) -> None:
    """With next to no noise both are the equal mean of the clipped changes."""
    words = ("strategy=ffa_lora", "adapter=lora", "train.steps=1")
    dp = ("aggregation.noise_multiplier=1e-9", "aggregation.clip_norm=0.01")
    central = federation(*words, "aggregation=central_dp", *dp)
    central.rounds(1)
    distributed = federation(*words, "aggregation=distributed_dp", *dp)
    distributed.rounds(1)
    for name, tensor in central.strategy.state.items():
        assert torch.allclose(tensor, distributed.strategy.state[name], atol=1e-7)
    together = distributed.reports[1].together
    assert set(together) == {"client_epsilon", "client_delta"}
    total = distributed.strategy.aggregation.total
    assert total is not None
    assert total.mean[0] == 0  # no noise covers a loss, so none is sent


def test_every_client_counts_once_under_distributed_noise() -> None:
    with pytest.raises(ValueError, match="counts the same"):
        replace(DistributedDp(), max_examples=5)
