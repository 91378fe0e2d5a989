"""Per-example gradients of ABBA's four factors, for Opacus (arXiv:2505.14238).

With y = s L (R x), L and R the Khatri–Rao factors, an example's gradients of L and R are those of
two linear layers; the product rule takes them on to the factors, since L[i, ab] = B1[i, a] B2[i, b]
and R[ab, j] = A1[a, j] A2[b, j]. Opacus would otherwise run the module once more under vmap.
"""

import torch
from opacus.grad_sample import register_grad_sampler
from torch import Tensor, nn

from fedtuners.adapters.abba.layer import AbbaFactors


@register_grad_sampler(AbbaFactors)  # type: ignore[untyped-decorator]
def abba_gradients(
    layer: AbbaFactors, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """(examples, *shape) of every factor that trains.

    Args:
        layer: the factors.
        activations: its one input x, (examples, …, in_features).
        backprops: ∂loss/∂y, (examples, …, out_features).
    """
    x, delta = (t.flatten(1, -2) if t.ndim > 2 else t[:, None] for t in (activations[0], backprops))
    L, R = layer.low_rank()  # the scale is in L
    pairs = (layer.abba_A1.shape[0], layer.abba_A2.shape[0])
    found: dict[nn.Parameter, Tensor] = {}
    if layer.abba_B1.requires_grad or layer.abba_B2.requires_grad:
        left = layer.scale * torch.einsum("nti,ntk->nik", delta, x.to(delta) @ R.T)
        left = left.unflatten(2, pairs)
        found[layer.abba_B1] = torch.einsum("niab,ib->nia", left, layer.abba_B2)
        found[layer.abba_B2] = torch.einsum("niab,ia->nib", left, layer.abba_B1)
    if layer.abba_A1.requires_grad or layer.abba_A2.requires_grad:
        right = torch.einsum("ntk,ntj->nkj", delta @ L, x.to(delta)).unflatten(1, pairs)
        found[layer.abba_A1] = torch.einsum("nabj,bj->naj", right, layer.abba_A2)
        found[layer.abba_A2] = torch.einsum("nabj,aj->nbj", right, layer.abba_A1)
    return {factor: gradient for factor, gradient in found.items() if factor.requires_grad}
