"""FFA trains and averages one factor, so that the average is exact."""

from collections.abc import Callable

import pytest
import torch
from federation import Federation

from fedtuners.adapters import by_module
from strategies.ffa_lora import FfaLora

Made = Callable[..., Federation]


@pytest.mark.parametrize("adapter", ["lora", "abba"])
def test_only_the_linear_factor_trains_and_the_mean_is_exact(
    federation: Made, adapter: str
) -> None:
    made = federation("strategy=ffa_lora", f"adapter={adapter}")
    method = made.strategy.adapter
    (frozen,) = made.strategy.shared.values()
    start = {name: value.clone() for name, value in frozen.items()}

    made.rounds(2)

    assert {name.rpartition(".")[2] for name in made.strategy.state} == {method.linear_factor}
    assert {name.rpartition(".")[2] for name in frozen} == {*method.factors} - {
        method.linear_factor
    }
    after = made.tuned.frozen()
    assert all(torch.equal(after[name], value) for name, value in start.items())
    uploads, weights = made.uploads(2), made.weights(2)
    frozen64 = by_module({name: value.double() for name, value in frozen.items()})
    for module, factors in by_module(made.strategy.state).items():
        deltas = [
            method.delta(frozen64[module] | _double(by_module(upload)[module]))
            for upload in uploads.values()
        ]
        truth = sum(p * delta for p, delta in zip(weights, deltas, strict=True))
        found = method.delta(frozen64[module] | _double(factors))
        torch.testing.assert_close(found, truth, atol=1e-5 * float(truth.abs().max()), rtol=1e-5)


def _double(factors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in factors.items()}


def test_half_of_loras_numbers_travel(federation: Made) -> None:
    whole, half = federation("strategy=fedavg_lora", "adapter=lora"), None
    half = federation("strategy=ffa_lora", "adapter=lora")

    numbers = [sum(t.numel() for t in made.strategy.state.values()) for made in (whole, half)]
    bs = sum(t.numel() for name, t in whole.strategy.state.items() if name.endswith("lora_B"))

    assert numbers[1] == bs < numbers[0]
    assert FfaLora.linear
