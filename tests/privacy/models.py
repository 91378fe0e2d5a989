"""A tiny model and a task on it, for what only needs gradients."""

import torch
from tiny_models import bert, llama, perturb, task_of
from torch import Tensor, nn

from fedtuners.adapters import Adapter, freeze_all_but
from fedtuners.tasks import collate
from fedtuners.tasks.batches import Encoded
from fedtuners.tasks.config import DataConfig
from fedtuners.tasks.task import CausalLm, Classification, Task

FAMILIES = {"causal_lm": llama, "classification": bert}


def tuned(kind: str, adapter: Adapter, factor: str | None = None) -> tuple[nn.Module, Task]:
    """An adapted tiny model without dropout and its task; `factor`: the only one that trains."""
    base = FAMILIES[kind]()
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if hasattr(base.config, "attention_dropout"):
        base.config.attention_dropout = 0.0
    model = adapter.attach(base, task_of(base), seed=0)
    perturb(model)
    if factor:
        freeze_all_but(model, factor)
    model.train()
    if kind == "causal_lm":
        return model, CausalLm(DataConfig())
    return model, Classification(DataConfig(task="classification"), ("a", "b", "c"))


def examples(kind: str, rows: int = 6, seed: int = 3) -> Encoded:
    """Examples of unequal lengths."""
    draw = torch.Generator().manual_seed(seed)
    items = []
    for row in range(rows):
        ids = torch.randint(3, 32, (4 + row % 3,), generator=draw).tolist()
        labels: list[int] | int = [-100, *ids[1:]] if kind == "causal_lm" else row % 3
        items.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return Encoded(tuple(items))


def one_by_one(model: nn.Module, task: Task, encoded: Encoded) -> dict[str, Tensor]:
    """Each example's gradient by a forward and backward pass of its own, without padding."""
    gradients: dict[str, list[Tensor]] = {}
    for item in encoded.items:
        model.zero_grad()
        task.per_example_loss(model, collate([item], pad=0)).sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                gradients.setdefault(name, []).append(parameter.grad.clone())
    model.zero_grad()
    return {name: torch.stack(rows) for name, rows in gradients.items()}
