"""LoRA-SB's start from an estimate of full fine-tuning's first step (arXiv 2411.19557, section 3).

The first AdamW step moves each weight by Δ = −η sign(Σ_batches ∇_W L). Its truncated SVD
Δ ≈ U S Vᵀ gives B = U, A = Vᵀ, R = diag(S). `estimate_updates` computes it where the data is.

Across clients, the sign of a sum is not the sum of signs, and a gradient is as large as the model.
There the start comes from two rounds of sketches, which are linear in the gradient, so that their
sum over the clients is the sketch of the summed gradient (Halko et al., arXiv 0909.4061):

1. client: Y = G Ω, Ω from a shared seed (`sketch_range`); server: Q = orth(Σ Y) (`range_basis`);
2. client: Z = Gᵀ Q (`sketch_core`); server: Σ G ≈ Q (Σ Z)ᵀ (`start_from_core`).

(m + n)(r + oversampling) numbers a module travel. This start takes the directions of the gradient,
not of its sign, and scales them so that Q Zᵀ has the sign update's Frobenius norm η √(m n).
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedtuners.adapters.base import Start
from fedtuners.adapters.gradients import Loss, accumulate, weight_gradients
from fedtuners.adapters.linear import LinearLayer, in_out_features
from fedtuners.adapters.low_rank import truncated_svd
from fedtuners.adapters.state import base_layer


def estimate_updates(
    model: nn.Module,
    batches: Sequence[Any],
    loss: Loss,
    modules: Iterable[str],
    rank: int,
    learning_rate: float,
    max_gradient_bytes: int = 2**31,
) -> dict[str, Start]:
    """The start of every module from the update estimate.

    The sign is of the gradient summed over all batches, so a module's full gradient (m·n fp32
    numbers) is held until the last batch. Modules are taken in groups of `max_gradient_bytes`, at
    least one module a group, and the batches are gone through once per group.

    Args:
        model: the base model, with or without adapters; its mode (dropout) is the caller's, and
            its parameters' `grad` and `requires_grad` are left as they were.
        batches: what `loss` takes; gone through several times.
        loss: (model, batch) -> scalar.
        modules: module paths in the base model.
        rank: r.
        learning_rate: η, that of the first warm-up step.
        max_gradient_bytes: memory for gradients; 0 holds one module's at a time.

    Returns:
        (B, A, S) of each module, on its weight's device.

    Raises:
        ValueError: when a module gets no gradient, naming it, or is too small for the rank.
    """
    starts: dict[str, Start] = {}
    for group in _groups(model, modules, max_gradient_bytes):
        gradients = weight_gradients(model, batches, loss, group)
        for module in group:
            starts[module] = start_from_gradient(gradients.pop(module), rank, learning_rate)
    return starts


def start_from_gradient(gradient: Tensor, rank: int, learning_rate: float) -> Start:
    """The start from a full gradient: truncated SVD of Δ = −η sign(G).

    Args:
        gradient: G (m, n), summed over all batches.
        rank: r.
        learning_rate: η.
    """
    U, S, Vh = truncated_svd(gradient.sign().mul_(-learning_rate), rank)
    return Start(B=U, A=Vh, S=S)


def sketch_range(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    modules: Sequence[str],
    width: int,
    seed: int,
) -> dict[str, Tensor]:
    """A client's first sketch, Y = G Ω of the summed losses' gradient; G is never formed.

    Args:
        model, batches, loss, modules: as in `estimate_updates`; the batches are used once.
        width: columns of Ω, rank + oversampling; no more than min(m, n) are used.
        seed: the clients' common seed of Ω.

    Returns:
        Y (m, width) of each module, on the CPU.
    """
    layers = {module: base_layer(model, module) for module in modules}
    omegas = {
        module: gaussian(layer, module, width, seed).to(layer.weight.device)
        for module, layer in layers.items()
    }
    return _on_cpu(
        accumulate(
            model, batches, loss, modules, lambda name, delta, x: delta.T @ (x @ omegas[name].to(x))
        )
    )


def gaussian(layer: LinearLayer, module: str, width: int, seed: int) -> Tensor:
    """Ω (n, width) of one module: standard normal, alike on every machine for the same seed."""
    digest = hashlib.sha256(f"{seed}/{module}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
    in_features, out_features = in_out_features(layer)
    columns = min(width, in_features, out_features)
    return torch.randn(in_features, columns, generator=generator)


def range_basis(Y: Tensor) -> Tensor:
    """The server's orthonormal basis Q (m, k) of the summed first sketches Y (m, k)."""
    return torch.linalg.qr(Y).Q


def sketch_core(
    model: nn.Module, batches: Iterable[Any], loss: Loss, bases: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A client's second sketch, Z = Gᵀ Q, (n, k) per module, on the CPU; G is never formed.

    Args:
        model, batches, loss: as in `sketch_range`, and the same batches.
        bases: Q (m, k) of each module.
    """
    placed = {name: Q.to(base_layer(model, name).weight.device) for name, Q in bases.items()}
    return _on_cpu(
        accumulate(
            model,
            batches,
            loss,
            list(bases),
            lambda name, delta, x: x.T @ (delta @ placed[name].to(x)),
        )
    )


def start_from_core(Q: Tensor, Z: Tensor, rank: int, learning_rate: float) -> Start:
    """The server's start of one module from Σ G ≈ Q Zᵀ.

    Args:
        Q: (m, k), k >= rank.
        Z: (n, k), the sum of the second sketches.
        rank: r.
        learning_rate: η; S is scaled so that all of Q Zᵀ has the Frobenius norm η √(m n).

    Raises:
        ValueError: when the rank exceeds k, or the gradient is zero or not finite.
    """
    if rank > Q.shape[1]:
        raise ValueError(f"rank {rank} from a sketch of width {Q.shape[1]}: sketch at least {rank}")
    U, S, Vh = torch.linalg.svd(Z.T, full_matrices=False)
    norm = S.norm()
    if not torch.isfinite(norm) or norm == 0:
        raise ValueError("the summed gradient is zero or not finite: check the start's data")
    scale = learning_rate * (Q.shape[0] * Z.shape[0]) ** 0.5 / norm
    return Start(B=-(Q @ U[:, :rank]), A=Vh[:rank], S=S[:rank] * scale)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def _groups(model: nn.Module, modules: Iterable[str], max_bytes: int) -> Iterator[list[str]]:
    """The modules in groups whose fp32 gradients fit into max_bytes, at least one module each."""
    group: list[str] = []
    held = 0
    for module in modules:
        size = 4 * math.prod(in_out_features(base_layer(model, module)))
        if group and held + size > max_bytes:
            yield group
            group, held = [], 0
        group.append(module)
        held += size
    if group:
        yield group
