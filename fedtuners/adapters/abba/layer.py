"""One linear layer adapted by ABBA (arXiv 2505.14238): y = W0 x + s ((B1 A1) ⊙ (B2 A2)) x."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from fedtuners.adapters.abba.config import AbbaConfig
from fedtuners.adapters.abba.khatri_rao import abba_scale, khatri_rao, khatri_rao_product
from fedtuners.adapters.low_rank import truncated_svd
from fedtuners.adapters.tuner import BranchLinear, dropout


class AbbaFactors(nn.Module):
    """The four factors of one adapter on one layer, and their product with an input.

    They live in a module of their own, called with one tensor, because that is what Opacus needs
    to find per-sample gradients.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        ranks: tuple[int, int],
        alpha: float,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        r1, r2 = ranks
        self.scale = abba_scale(alpha, r1, r2)

        def zeros(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(rows, columns, device=device, dtype=dtype))

        self.abba_A1 = zeros(r1, in_features)
        self.abba_B1 = zeros(out_features, r1)
        self.abba_A2 = zeros(r2, in_features)
        self.abba_B2 = zeros(out_features, r2)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """(L, R) with ΔW = L @ R, the scale in L."""
        L, R = khatri_rao(self.abba_A1, self.abba_B1, self.abba_A2, self.abba_B2)
        return self.scale * L, R

    def forward(self, x: Tensor) -> Tensor:
        """ΔW x, (…, in_features) -> (…, out_features)."""
        factors = (self.abba_A1, self.abba_B1, self.abba_A2, self.abba_B2)
        return khatri_rao_product(x, *factors, self.scale)

    def start(self, weight: Tensor) -> None:
        """B1 A1 = SVD_r1(W0), B2 = 0 and A2 Kaiming, so that ΔW = 0 but B2 has a gradient.

        Args:
            weight: W0 (m, n) on the CPU, where the random numbers are drawn too, so that every
                machine starts alike.
        """
        U, S, Vh = truncated_svd(weight, self.abba_A1.shape[0])
        A2 = torch.empty(self.abba_A2.shape, dtype=weight.dtype)
        nn.init.kaiming_uniform_(A2, a=math.sqrt(5))
        self.abba_B1.data.copy_(U * S.sqrt())
        self.abba_A1.data.copy_(S.sqrt()[:, None] * Vh)
        self.abba_A2.data.copy_(A2)


class AbbaLinear(BranchLinear):
    """y = W0 x + s ((B1 A1) ⊙ (B2 A2)) x, with all four factors trained."""

    adapter_layer_names = ("abba_factors",)
    other_param_names = ("ranks", "abba_dropout")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.abba_factors = nn.ModuleDict()
        self.abba_dropout = nn.ModuleDict()

    def add_branch(self, adapter_name: str, config: AbbaConfig) -> None:
        """Creates the factors, started from W0."""
        ranks = (config.r1, config.r2)
        self.ranks[adapter_name] = ranks
        device, dtype = self.linear.weight.device, self.factor_dtype
        factors = AbbaFactors(
            self.in_features, self.out_features, ranks, config.alpha, device, dtype
        )
        if not factors.abba_A1.is_meta:
            factors.start(self.base_matrix())
        self.abba_factors[adapter_name] = factors
        self.abba_dropout[adapter_name] = dropout(config.dropout)

    def branch(self, adapter_name: str, x: Tensor) -> Tensor:
        """s ((B1 A1) ⊙ (B2 A2)) x."""
        return cast(Tensor, self.abba_factors[adapter_name](self.abba_dropout[adapter_name](x)))

    def low_rank(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """The Khatri–Rao factors, the scale in the left one."""
        return cast(AbbaFactors, self.abba_factors[adapter_name]).low_rank()

    def _freeze_non_trainable_peft_weights(self, adapter_names: object = None) -> None:
        # PEFT freezes whole containers; ABBA's factors share one, so they are frozen by name.
        for adapter_name, names in self.frozen_peft_weight_names.items():
            for name in names:
                getattr(self.abba_factors[adapter_name], name).requires_grad_(False)
