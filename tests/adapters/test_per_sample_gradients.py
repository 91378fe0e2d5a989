"""Property 9: Opacus' per-sample gradients are those of one-sample backward passes."""

import pytest
import torch
from tiny_models import bert, gpt2, llama, perturb, task_of, tokens
from torch import Tensor, nn

from fedtuners.adapters import Adapter, Lora, freeze_all_but

opacus = pytest.importorskip("opacus")
from opacus.grad_sample import GradSampleHooks  # noqa: E402


def per_sequence_losses(model: nn.Module, ids: Tensor) -> Tensor:
    """One loss per row: its tokens' mean, so that no row's loss depends on another row."""
    logits = model(input_ids=ids).logits
    if logits.ndim == 2:
        return nn.functional.cross_entropy(logits, ids[:, 0] % 3, reduction="none")
    losses = nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
    )
    return losses.mean(1)


def one_by_one(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    gradients: dict[str, list[Tensor]] = {}
    for row in ids:
        model.zero_grad()
        per_sequence_losses(model, row[None]).sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                gradients.setdefault(name, []).append(parameter.grad.clone())
    model.zero_grad()
    return {name: torch.stack(rows) for name, rows in gradients.items()}


def check(model: nn.Module) -> None:
    perturb(model)
    model.train()
    expected = one_by_one(model, tokens())
    hooks = GradSampleHooks(model, loss_reduction="sum")
    per_sequence_losses(model, tokens()).sum().backward()
    found = {n: p.grad_sample for n, p in model.named_parameters() if p.requires_grad}
    hooks.cleanup()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].shape == gradient.shape
        assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


@pytest.mark.parametrize("make", [llama, gpt2, bert], ids=lambda make: make.__name__)
def test_every_adapter(adapter: Adapter, make: type) -> None:
    base = make()
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if hasattr(base.config, "attention_dropout"):
        base.config.attention_dropout = 0.0
    check(adapter.attach(base, task_of(base), seed=0))


def test_ffa() -> None:
    model = Lora(rank=4).attach(llama(), "causal_lm", seed=0)
    freeze_all_but(model, "lora_B")
    check(model)
