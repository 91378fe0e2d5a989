"""PEFT model of ABBA (arXiv 2505.14238)."""

from collections.abc import Sequence

from fedtuners.adapters.abba.config import AbbaConfig
from fedtuners.adapters.abba.layer import AbbaLinear
from fedtuners.adapters.tuner import BranchTuner


class AbbaModel(BranchTuner):
    """Puts an `AbbaLinear` around every target of a base model."""

    prefix = "abba_"
    tuner_layer_cls = AbbaLinear

    def ranks(self, config: AbbaConfig) -> Sequence[int]:
        """Each pair's rank must fit into every target; their product need not."""
        return (config.r1, config.r2)
