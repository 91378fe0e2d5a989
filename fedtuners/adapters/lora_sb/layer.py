"""One linear layer adapted by LoRA-SB (arXiv 2411.19557): y = W0 x + B (R (A x)).

All three factors are weights of nn.Linear modules, and only R's requires a gradient. Autograd then
keeps just A x (r-wide) for the backward pass, since neither frozen product needs its input, and
Opacus sees an ordinary r×r linear layer.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fedtuners.adapters.lora_sb.config import LoraSbConfig
from fedtuners.adapters.low_rank import truncated_svd
from fedtuners.adapters.tuner import BranchLinear, dropout

# Standard deviation of R's entries at LoRA-XS' start (arXiv 2405.17604, section 3).
LORA_XS_STD = 1e-5


class LoraSbLinear(BranchLinear):
    """y = W0 x + B R A x, with A (r×n) and B (m×r) frozen and R (r×r) trained."""

    # A and B are not among the first: PEFT makes trainable whatever is, at every switch.
    adapter_layer_names = ("lora_sb_R",)
    other_param_names = ("ranks", "lora_sb_A", "lora_sb_B", "lora_sb_dropout")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.lora_sb_R = nn.ModuleDict()
        self.lora_sb_A = nn.ModuleDict()
        self.lora_sb_B = nn.ModuleDict()
        self.lora_sb_dropout = nn.ModuleDict()

    def add_branch(self, adapter_name: str, config: LoraSbConfig) -> None:
        """Creates A, B and R: zeros for init="update", the SVD of W0 for init="weights"."""
        rank = config.r
        self.ranks[adapter_name] = (rank,)
        self.lora_sb_A[adapter_name] = self._zeros(self.in_features, rank).requires_grad_(False)
        self.lora_sb_B[adapter_name] = self._zeros(rank, self.out_features).requires_grad_(False)
        self.lora_sb_R[adapter_name] = self._zeros(rank, rank)
        self.lora_sb_dropout[adapter_name] = dropout(config.dropout)
        if config.init == "weights" and not self.factor("R", adapter_name).is_meta:
            self._start_from_weights(adapter_name, rank)

    def branch(self, adapter_name: str, x: Tensor) -> Tensor:
        """B R A x."""
        return linear(self._core(adapter_name, x), self.factor("B", adapter_name))

    def added(self, adapter_name: str, x: Tensor, result: Tensor) -> Tensor:
        """As in `BranchLinear`, but without a tensor of the result's size for the branch alone."""
        core = self._core(adapter_name, x)
        if core.dtype != result.dtype:  # factors are in fp32 beside a base in half precision
            return result + linear(core, self.factor("B", adapter_name)).to(result.dtype)
        rows, B = result.flatten(0, -2), self.factor("B", adapter_name)
        return torch.addmm(rows, core.flatten(0, -2), B.T).view_as(result)

    def _core(self, adapter_name: str, x: Tensor) -> Tensor:
        """R A x, (…, r)."""
        x = linear(self.lora_sb_dropout[adapter_name](x), self.factor("A", adapter_name))
        return cast(Tensor, self.lora_sb_R[adapter_name](x))

    def low_rank(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """(B R, A)."""
        B, R, A = (self.factor(name, adapter_name) for name in "BRA")
        return B @ R, A

    def factor(self, name: str, adapter_name: str) -> Tensor:
        """The weight of A, B or R."""
        return cast(nn.Linear, getattr(self, f"lora_sb_{name}")[adapter_name]).weight

    def set_factors(self, adapter_name: str, B: Tensor, A: Tensor, R: Tensor) -> None:
        """Copies B (m×r), A (r×n) and R (r×r) into an adapter.

        Raises:
            ValueError: when a shape differs from the adapter's.
        """
        for name, value in (("B", B), ("A", A), ("R", R)):
            weight = self.factor(name, adapter_name)
            if weight.shape != value.shape:
                raise ValueError(
                    f"{name} has shape {tuple(weight.shape)}, the start {tuple(value.shape)}: "
                    "estimate it with the adapter's rank"
                )
            weight.data.copy_(value)

    def _start_from_weights(self, adapter_name: str, rank: int) -> None:
        U, S, Vh = truncated_svd(self.base_matrix(), rank)
        R = torch.randn(rank, rank, dtype=S.dtype) * LORA_XS_STD
        self.set_factors(adapter_name, U, S[:, None] * Vh, R)

    def _zeros(self, in_features: int, out_features: int) -> nn.Linear:
        # Made on the meta device first, so that no random numbers are drawn only to be zeroed.
        layer = nn.Linear(in_features, out_features, bias=False, device="meta")
        device = self.linear.weight.device
        zeros = torch.zeros(out_features, in_features, dtype=self.factor_dtype, device=device)
        layer.weight = nn.Parameter(zeros)
        return layer
