"""FedAvg averages factors: the right weights, and the error that this makes in their product."""

from typing import Any

import torch
from federation import connected
from local_grid import LocalGrid, puppet, trained

from fedtuners.adapters import Abba, Adapter, Lora, by_module
from strategies.algebra import State
from strategies.fedavg_lora import FedAvgLora
from strategies.messages import Request

M, N = 12, 9  # not square
SHAPES = {
    "lora": {"lora_A": (2, N), "lora_B": (M, 2)},
    "abba": {"abba_A1": (2, N), "abba_B1": (M, 2), "abba_A2": (3, N), "abba_B2": (M, 3)},
}
ADAPTERS: dict[str, Adapter] = {
    "lora": Lora(rank=2, alpha=6),
    "abba": Abba(rank1=2, rank2=3, alpha=2.0),
}


def upload(name: str, client: int, drift: float = 1.0) -> State:
    """A common start and this client's drift from it, in fp64."""
    state: State = {}
    for factor, shape in SHAPES[name].items():
        common = torch.Generator().manual_seed(0)
        own = torch.Generator().manual_seed(1 + client)
        start = torch.randn(shape, generator=common, dtype=torch.float64)
        moved = torch.randn(shape, generator=own, dtype=torch.float64)
        state[f"x.{factor}"] = start + drift * moved
    return state


def averaged(name: str, drift: float = 1.0) -> tuple[State, list[State], list[float]]:
    """The global state after one round, the uploads, and p_i."""

    def answer(request: Request) -> Any:
        return trained(request, upload(name, request.client, drift), examples=request.client + 1)

    grid = LocalGrid(2, client=puppet(answer))
    strategy = connected(FedAvgLora(ADAPTERS[name]), upload(name, 9), grid)
    strategy.start(grid, strategy.packed(), 1, 5)
    return strategy.state, [upload(name, c, drift) for c in range(3)], [1 / 6, 2 / 6, 3 / 6]


def error(name: str, state: State, uploads: list[State], weights: list[float]) -> float:
    """‖ΔW(mean) − Σ p_i ΔW_i‖ / ‖Σ p_i ΔW_i‖."""
    delta = ADAPTERS[name].delta
    pairs = zip(weights, uploads, strict=True)
    truth = sum((p * delta(by_module(u)["x"]) for p, u in pairs), torch.zeros(M, N).double())
    return float((delta(by_module(state)["x"]) - truth).norm() / truth.norm())


def test_each_factor_is_the_mean_weighted_by_examples() -> None:
    state, uploads, weights = averaged("lora")

    for name, value in state.items():
        mean = sum(p * u[name] for p, u in zip(weights, uploads, strict=True))
        torch.testing.assert_close(value, mean, atol=1e-12, rtol=1e-12)
        plain = torch.stack([u[name] for u in uploads]).mean(0)
        assert (value - plain).norm() > 0.1  # an unweighted mean is another


def test_the_product_of_the_means_is_not_the_mean_of_the_products() -> None:
    assert error("lora", *averaged("lora")) > 0.1
    assert error("abba", *averaged("abba")) > 0.1


def test_the_error_falls_with_the_drift() -> None:
    for name in ADAPTERS:
        far, near = (error(name, *averaged(name, drift)) for drift in (1.0, 0.01))
        assert near < 1e-3 < far


def test_it_is_linear_in_the_upload() -> None:
    assert FedAvgLora.linear
    assert not FedAvgLora.only_linear_factor
