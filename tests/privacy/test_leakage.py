"""What plain averaging gives away, and noise does not."""

import pytest
import torch
from models import tuned
from tiny_models import tokens

from fedtuners.adapters import Lora
from fedtuners.adapters.state import named_parameters
from fedtuners.privacy.dpsgd import Noise, privatised
from fedtuners.privacy.leakage import membership, words_in_gradient
from fedtuners.privacy.randomness import PrivateRandom
from fedtuners.tasks import collate


def upload() -> tuple[torch.Tensor, torch.Tensor, set[int]]:
    """A first layer's gradient of A for one text, every word's input there, the text's words."""
    model, task = tuned("causal_lm", Lora(rank=8))
    (ids,) = tokens(rows=1, length=8).tolist()
    item = {"input_ids": ids, "attention_mask": [1] * 8, "labels": [-100, *ids[1:]]}
    task.per_example_loss(model, collate([item], pad=0)).sum().backward()
    gradient = named_parameters(model)["model.layers.0.self_attn.v_proj.lora_A"].grad
    assert gradient is not None
    base = model.get_base_model().model
    vectors = base.layers[0].input_layernorm(base.embed_tokens.weight).detach()
    return gradient, vectors, set(ids[:-1])  # nothing is predicted from the last word


def test_a_plain_gradient_gives_the_words_away() -> None:
    gradient, vectors, words = upload()
    assert set(words_in_gradient(gradient, vectors)) == words


def test_a_private_one_does_not() -> None:
    gradient, vectors, _ = upload()
    clipped = gradient / gradient.norm()
    released = privatised(clipped, Noise(1.0, 1.0, 1.0), PrivateRandom(seed=0))
    assert words_in_gradient(released, vectors) == []


def test_membership_scores() -> None:
    perfect = membership([3.0, 2.0], [1.0, 0.0])
    assert (perfect.auc, perfect.found) == (1.0, 1.0)
    draw = torch.Generator().manual_seed(0)
    same = membership(*torch.randn(2, 5000, generator=draw).tolist())
    assert same.auc == pytest.approx(0.5, abs=0.02)
    assert same.found == pytest.approx(0.01, abs=0.006)
    assert membership([1.0], [1.0]).auc == 0.5
    with pytest.raises(ValueError, match="rows that were not"):
        membership([1.0], [])
