"""Fixtures: every adapter method, every model family."""

import pytest
from tiny_models import bert, gpt2, llama, roberta
from torch import nn

from fedtuners.adapters import Abba, Adapter, Lora, LoraSb

ADAPTERS: list[Adapter] = [
    Lora(rank=4, alpha=8),
    LoraSb(rank=4),
    LoraSb(rank=4, init="weights"),
    Abba(rank1=2, rank2=3, alpha=2.0),
]


@pytest.fixture(params=ADAPTERS, ids=["lora", "lora_sb", "lora_xs", "abba"])
def adapter(request: pytest.FixtureRequest) -> Adapter:
    """Every adapter method."""
    return request.param


@pytest.fixture(params=[llama, gpt2, bert, roberta], ids=lambda make: make.__name__)
def base(request: pytest.FixtureRequest) -> nn.Module:
    """A fresh base model of every family."""
    return request.param()
