"""Gradients of frozen weights, module by module, without a gradient on the model.

The gradient of W in y = W x is Σ_tokens δ xᵀ with δ = ∂L/∂y. A tap on the layer's output sees both
as the backward pass goes by, so a sum of any linear function of the gradient can be kept instead
of the gradient, and of a few modules at a time. Taps see through gradient checkpointing. A layer
used twice adds up; layers that share a weight get a gradient each.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedtuners.adapters.state import base_layer

Loss = Callable[[nn.Module, Any], Tensor]
"""loss(model, batch) -> scalar; a sum or a mean, as the caller wants batches to weigh."""


def weight_gradients(
    model: nn.Module, batches: Iterable[Any], loss: Loss, modules: Sequence[str]
) -> dict[str, Tensor]:
    """∇_W of the summed losses, (m, n) per module, in at least fp32; see `accumulate`."""
    return accumulate(model, batches, loss, modules, lambda _, delta, x: delta.T @ x)


def accumulate(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    modules: Sequence[str],
    product: Callable[[str, Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Σ product(module, δ, x) over all batches, one tensor per module.

    Args:
        model: left as it was, `requires_grad` and `grad` too; its mode (dropout) is the caller's.
        batches: what `loss` takes.
        loss: (model, batch) -> scalar.
        modules: module paths in the base model.
        product: (module, δ (tokens, m), x (tokens, n)) -> a term of that module's sum, linear in
            the gradient δᵀ x; δ and x are in at least fp32.

    Raises:
        ValueError: when no gradient reaches a module, naming it.
    """
    sums: dict[str, Tensor] = {}

    def add(module: str, delta: Tensor, x: Tensor) -> None:
        term = product(module, delta, x)
        sums[module] = sums[module] + term if module in sums else term

    with _frozen(model), _tapped(model, modules, add):
        for batch in batches:
            value = loss(model, batch)
            if not value.requires_grad:
                raise ValueError(
                    "the loss does not depend on the modules: with gradient checkpointing, "
                    "use use_reentrant=False"
                )
            value.backward()
    missed = [module for module in modules if module not in sums]
    if missed:
        raise ValueError(
            f"no gradient reaches {missed[0]}: leave it out, or give batches that use it"
        )
    return sums


class _Tap(torch.autograd.Function):
    """The identity on a layer's output that hands (δ, x), flattened to rows, to a sink.

    The anchor, a scalar that requires a gradient, makes autograd come by although all weights are
    frozen.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, x: Tensor, anchor: Tensor, sink: Callable[[Tensor, Tensor], None]
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.sink = sink
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        dtype = torch.promote_types(delta.dtype, torch.float32)
        ctx.sink(delta.flatten(0, -2).to(dtype), x.flatten(0, -2).to(dtype))
        return delta, None, None, None


@contextmanager
def _tapped(
    model: nn.Module, modules: Iterable[str], add: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Within it, the backward pass calls add(module, δ, x) at every use of each base layer."""
    anchor = torch.zeros((), requires_grad=True)

    def hook(module: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def sink(delta: Tensor, x: Tensor) -> None:
            add(module, delta, x)

        return lambda _, args, output: _Tap.apply(output, args[0], anchor, sink)

    handles = [base_layer(model, module).register_forward_hook(hook(module)) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Within it no parameter requires a gradient: the backward pass stops at the earliest tap."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
