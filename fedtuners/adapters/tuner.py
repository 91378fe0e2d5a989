"""What our PEFT tuners share: a frozen linear layer with an additive branch, y = W0 x + ΔW x.

A tuner subclasses `BranchLinear` (one adapted layer) and `BranchTuner` (the model around them);
PEFT does the rest: saving, loading, switching, merging.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from fedtuners.adapters.linear import (
    LinearLayer,
    as_stored,
    check_known,
    check_mergeable,
    check_rank,
    in_out_features,
    linear_layer,
    weight_matrix,
)


class BranchLinear(nn.Module, BaseTunerLayer):
    """A frozen nn.Linear or Conv1D with one branch per adapter added to its output.

    Subclasses name their containers in `adapter_layer_names` (trained) and `other_param_names`
    (not trained), and implement `add_branch`, `branch` and `low_rank`.

    Attributes:
        base_layer: the frozen layer, (…, in_features) -> (…, out_features).
        ranks: the rank or ranks of each adapter, for printing and deletion.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = in_out_features(self.linear)
        self.ranks: dict[str, tuple[int, ...]] = {}
        self.merged_adapters = []

    @property
    def linear(self) -> LinearLayer:
        """The frozen layer, under any other tuner's layers."""
        return linear_layer("base_layer", self.get_base_layer())

    def add_branch(self, adapter_name: str, config: Any) -> None:
        """Creates the factors of one adapter."""
        raise NotImplementedError

    def branch(self, adapter_name: str, x: Tensor) -> Tensor:
        """ΔW x of one adapter, (…, in_features) -> (…, out_features)."""
        raise NotImplementedError

    def low_rank(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """(L, R) of one adapter with ΔW = L @ R in the orientation of nn.Linear."""
        raise NotImplementedError

    def has_branch(self, adapter_name: str) -> bool:
        """Whether the adapter has a branch on this layer."""
        return adapter_name in self.ranks

    @property
    def factor_dtype(self) -> torch.dtype:
        """Factors are kept in at least fp32, whatever the base layer is in."""
        return torch.promote_types(self.linear.weight.dtype, torch.float32)

    def base_matrix(self) -> Tensor:
        """W0 (m, n) as a CPU tensor of `factor_dtype`, for starts that decompose it."""
        return weight_matrix(self.linear).to("cpu", self.factor_dtype)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """ΔW of one adapter in the shape of the base layer's weight, scaling included."""
        L, R = self.low_rank(adapter_name)
        return as_stored(self.linear, L @ R)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """W0 x + b, plus ΔW x of every active adapter, (…, in_features) -> (…, out_features)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for adapter_name in self.active_adapters:
            if self.has_branch(adapter_name):
                x = self._cast_input_dtype(x, self.factor_dtype)
                result = self.added(adapter_name, x, result)
        return result

    def added(self, adapter_name: str, x: Tensor, result: Tensor) -> Tensor:
        """result + ΔW x of one adapter, in the result's dtype."""
        return result + self.branch(adapter_name, x).to(result.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds ΔW of the given (else the active) adapters to the base weight.

        Raises:
            ValueError: when the base is quantised; with `safe_merge`, when a merged weight would
                not be finite.
        """
        check_mergeable(self.linear)
        weight = self.linear.weight
        for adapter_name in check_adapters_to_merge(self, adapter_names):
            if not self.has_branch(adapter_name):
                continue
            merged = (weight.data + self.get_delta_weight(adapter_name).detach()).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"adapter {adapter_name!r} has values that are not finite")
            weight.data = merged
            self.merged_adapters.append(adapter_name)

    def unmerge(self) -> None:
        """Subtracts what `merge` added; exact up to rounding in the base layer's dtype."""
        if not self.merged:
            warnings.warn("no adapter is merged: nothing to unmerge", stacklevel=2)
        weight = self.linear.weight
        while self.merged_adapters:
            delta = self.get_delta_weight(self.merged_adapters.pop()).detach()
            weight.data = (weight.data - delta).to(weight.dtype)


class BranchTuner(BaseTuner):
    """A BaseTuner whose layers are `BranchLinear`s; subclasses set `prefix` and the layer class."""

    tuner_layer_cls: type[BranchLinear]
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # declared so by PEFT

    def ranks(self, config: Any) -> Sequence[int]:
        """The ranks that must fit into every target."""
        raise NotImplementedError

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        linear = linear_layer(current_key, base)
        check_known(current_key, linear)
        for rank in self.ranks(peft_config):
            check_rank(current_key, linear, rank)
        layer = target if isinstance(target, BranchLinear) else self.tuner_layer_cls(target)
        setattr(parent, target_name, layer)
        layer.add_branch(adapter_name, peft_config)
        layer.set_adapter(self.active_adapters)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT's own version copies `weight` onto the new module, which a head that is a module of
        # several layers (RoBERTa's) does not have.
        setattr(parent, child_name, new_module)


def dropout(probability: float) -> nn.Module:
    """Dropout, or the identity, which keeps no mask, when the probability is 0."""
    return nn.Dropout(probability) if probability > 0 else nn.Identity()
