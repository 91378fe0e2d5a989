"""Adapter tensors by name, and freezing all but one factor."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import bert, gpt2, llama, logits, perturb, task_of, tokens

from fedtuners.adapters import (
    Abba,
    Adapter,
    Lora,
    LoraSb,
    adapter_state,
    by_module,
    freeze_all_but,
    load_state,
    trainable_names,
)
from fedtuners.results import saved_state


def test_names_are_those_of_the_base_model(adapter: Adapter) -> None:
    base = bert()
    names = set(dict(base.named_modules())) | {"classifier"}
    state = adapter_state(adapter.attach(base, "classification", seed=0))
    assert {"classifier.weight", "classifier.bias"} <= state.keys()
    grouped = by_module(state)
    head = grouped.pop("classifier")
    assert head.keys() == {"weight", "bias"}
    assert grouped.keys() <= names
    assert all(set(factors) == set(adapter.factors) for factors in grouped.values())


def test_state_moves_a_model_into_another(adapter: Adapter) -> None:
    model = adapter.attach(llama(), "causal_lm", seed=0)
    other = adapter.attach(llama(), "causal_lm", seed=1)
    perturb(model)
    load_state(other, adapter_state(model))
    assert torch.equal(logits(model), logits(other))


def test_an_output_layer_that_is_the_embedding_is_no_target() -> None:
    with pytest.raises(ValueError, match="lm_head shares its weight with the input embedding"):
        Lora(rank=2, targets=["lm_head"]).attach(gpt2(), "causal_lm", seed=0)


def test_every_target_must_be_there(adapter: Adapter) -> None:
    some = replace(adapter, targets=["q_proj", "k_prj"])
    with pytest.raises(ValueError, match=r"no linear layer called k_prj; it adapts q_proj"):
        some.attach(llama(), "causal_lm", seed=0)


def test_an_adapted_output_layer_is_saved_without_its_own_weight(tmp_path: Path) -> None:
    adapter = Lora(rank=2, targets=["lm_head", "q_proj"])
    model = adapter.attach(llama(), "causal_lm", seed=0)
    model.save_pretrained(str(tmp_path))
    assert saved_state(adapter, tmp_path).keys() == adapter_state(model).keys()


def test_state_is_a_copy(adapter: Adapter) -> None:
    model = adapter.attach(llama(), "causal_lm", seed=0)
    before = adapter_state(model)
    expected = {name: value.clone() for name, value in before.items()}
    perturb(model)
    assert all(torch.equal(before[name], expected[name]) for name in expected)
    assert all(not value.requires_grad and value.device.type == "cpu" for value in before.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: {"model.layers.9.mlp.up_proj.lora_A": s["x"]},
            "is not a tensor of this adapter",
        ),
        (lambda s: {s["name"]: s["x"][:1]}, "use the same settings on both sides"),
        (lambda s: {s["name"]: s["x"].bfloat16()}, "torch.bfloat16"),
    ],
)
def test_a_wrong_tensor_is_refused_and_nothing_changes(change: object, words: str) -> None:
    model = Lora(rank=4).attach(llama(), "causal_lm", seed=0)
    before = adapter_state(model)
    first, second = list(before)[:2]
    bad = change({"name": second, "x": before[second]})
    with pytest.raises(ValueError, match=words):
        load_state(model, {first: before[first] + 1, **bad})
    after = adapter_state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("adapter", "factor"),
    [(Lora(rank=4), "lora_B"), (Lora(rank=4), "lora_A"), (Abba(rank1=2, rank2=2), "abba_B2")],
)
def test_one_factor_trains_and_stays_the_only_one(adapter: Adapter, factor: str) -> None:
    model = adapter.attach(bert(), "classification", seed=0)
    model.add_adapter("second", adapter.config("classification"))
    freeze_all_but(model, factor)
    expected = {f".{factor}", "classifier.weight", "classifier.bias"}

    def suffixes() -> set[str]:
        return {n if n in expected else "." + n.rpartition(".")[2] for n in trainable_names(model)}

    assert suffixes() == expected
    model.set_adapter("second")
    model.set_adapter("default")
    assert suffixes() == expected
    with model.disable_adapter():
        pass
    assert suffixes() == expected


def test_another_factor_can_take_over() -> None:
    model = Lora(rank=4).attach(llama(), "causal_lm", seed=0)
    freeze_all_but(model, "lora_B")
    freeze_all_but(model, "lora_A")
    assert all(name.endswith(".lora_A") for name in trainable_names(model))
    with pytest.raises(ValueError, match="has no factor lora_sb_R: choose one of lora_A, lora_B"):
        freeze_all_but(model, "lora_sb_R")


def test_linear_factor_of_lora_sb_trains_already() -> None:
    model = LoraSb(rank=4).attach(llama(), "causal_lm", seed=0)
    before = trainable_names(model)
    freeze_all_but(model, "lora_sb_R")
    assert trainable_names(model) == before


def test_delta_is_linear_in_the_linear_factor(adapter: Adapter) -> None:
    """The mean over that factor is then the mean of the updates: aggregation is exact."""
    model = adapter.attach(llama().double(), "causal_lm", seed=0)
    perturb(model)
    tensors = by_module(adapter_state(model))["model.layers.0.mlp.up_proj"]
    factor = adapter.linear_factor
    other = {**tensors, factor: torch.randn_like(tensors[factor])}
    mean = {**tensors, factor: (tensors[factor] + 3 * other[factor]) / 4}
    expected = (adapter.delta(tensors) + 3 * adapter.delta(other)) / 4
    torch.testing.assert_close(adapter.delta(mean), expected, atol=1e-12, rtol=1e-12)


def test_head_trains(adapter: Adapter) -> None:
    base = bert()
    model = adapter.attach(base, task_of(base), seed=0)
    model(input_ids=tokens(), labels=torch.tensor([0, 1, 2])).loss.backward()
    assert "classifier.weight" in trainable_names(model)
    with pytest.raises(ValueError, match="no head called classifier or score"):
        adapter.attach(llama(), "classification", seed=0)
    with pytest.raises(ValueError, match="choose one of causal_lm, classification"):
        adapter.attach(llama(), "regression", seed=0)
