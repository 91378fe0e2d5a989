"""A loaded model takes on any round of any client, and gives it up again without a trace."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedtuners.adapters import residuals
from fedtuners.tuned import TunedModel, choose_device

Settings = Callable[..., Any]
IDS = torch.randint(3, 250, (3, 9), generator=torch.Generator().manual_seed(0))


def logits(tuned: TunedModel) -> Tensor:
    with torch.no_grad():
        return tuned.model(input_ids=IDS).logits


def noise(tuned: TunedModel, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(t.shape, generator=generator) * 0.3 for n, t in tuned.state().items()}


def residual(tuned: TunedModel, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for module, (m, n) in tuned.shapes.items():
        state[f"{module}.residual_L"] = torch.randn(m, 2, generator=generator) * 0.3
        state[f"{module}.residual_R"] = torch.randn(2, n, generator=generator) * 0.3
    return state


@pytest.fixture
def tuned(settings: Settings) -> TunedModel:
    return TunedModel(settings("adapter=lora", "strategy=fedex_lora"))


def test_equal_seeds_give_equal_adapters(settings: Settings) -> None:
    words = ("adapter=lora", "strategy=fedavg_lora")
    first, second = TunedModel(settings(*words)), TunedModel(settings(*words))
    other = TunedModel(settings(*words, "seed=1"))

    same = [torch.equal(second.state()[name], value) for name, value in first.state().items()]
    differ = [not torch.equal(other.state()[name], value) for name, value in first.state().items()]
    assert all(same)
    assert any(differ)


@pytest.mark.parametrize("adapter", ["lora", "lora_sb", "abba"])
@pytest.mark.parametrize("linear_only", [False, True])
def test_what_trains_and_what_is_frozen_are_the_adapter(
    settings: Settings, adapter: str, linear_only: bool
) -> None:
    tuned = TunedModel(settings(f"adapter={adapter}", "strategy=fedavg_lora"), linear_only)

    trains = {name.rpartition(".")[2] for name in tuned.state()}
    frozen = {name.rpartition(".")[2] for name in tuned.frozen()}
    assert not trains & frozen
    assert trains | frozen == set(tuned.adapter.factors)
    assert (trains == {tuned.adapter.linear_factor}) == (linear_only or adapter == "lora_sb")


def test_the_order_of_installations_leaves_no_trace(tuned: TunedModel) -> None:
    a, b = noise(tuned, 1), noise(tuned, 2)
    r, s = residual(tuned, 3), residual(tuned, 4)
    tuned.install(a, {"r": r})
    alone = logits(tuned)

    tuned.install(b, {"r": r, "s": s})
    between = logits(tuned)
    tuned.install(a, {"r": r})

    assert torch.equal(logits(tuned), alone)
    assert not torch.allclose(between, alone)


def test_pieces_add_up(tuned: TunedModel) -> None:
    state, r, s = noise(tuned, 1), residual(tuned, 3), residual(tuned, 4)
    tuned.install(state, {"r": r, "s": s})

    for module, (L, R) in residuals(tuned.model).items():
        truth = sum(
            piece[f"{module}.residual_L"].double() @ piece[f"{module}.residual_R"].double()
            for piece in (r, s)
        )
        torch.testing.assert_close(L.double() @ R.double(), truth, atol=1e-6, rtol=1e-5)


def test_no_pieces_mean_no_residual(tuned: TunedModel) -> None:
    tuned.install(noise(tuned, 1), {})
    plain = logits(tuned)
    tuned.install(noise(tuned, 1), {"r": residual(tuned, 3)})

    tuned.install(noise(tuned, 1), {})

    assert torch.equal(logits(tuned), plain)
    assert not residuals(tuned.model)


def test_uninstalled_it_is_the_base_model(settings: Settings) -> None:
    from transformers import AutoModelForCausalLM

    tuned = TunedModel(settings("adapter=abba", "strategy=fedex_lora"))
    base = AutoModelForCausalLM.from_pretrained(tuned.config.model.name).eval()
    tuned.install(noise(tuned, 1), {"r": residual(tuned, 3)})

    tuned.uninstall()

    with torch.no_grad():
        truth = base(input_ids=IDS).logits
    torch.testing.assert_close(logits(tuned), truth, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("how", ["name", "shape", "dtype"])
def test_a_state_of_another_model_is_refused_whole(tuned: TunedModel, how: str) -> None:
    state, before = noise(tuned, 1), tuned.state()
    name = sorted(state)[-1]
    value = state.pop(name)
    changed = {"name": value, "shape": value[:1], "dtype": value.double()}[how]
    state["elsewhere.lora_A" if how == "name" else name] = changed

    with pytest.raises(ValueError, match=r"elsewhere|lora_B"):
        tuned.install(state, {})

    assert all(torch.equal(tuned.state()[key], value) for key, value in before.items())


def test_devices() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "cuda")
    with pytest.raises(ValueError, match="device=gpu: choose auto, cpu, cuda"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="choose device=cpu"):
            choose_device("cuda")
