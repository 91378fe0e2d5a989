"""ABBA (arXiv 2505.14238): ΔW = s (B1 A1) ⊙ (B2 A2), all four factors trained."""

from fedtuners.adapters.abba.adapter import Abba
from fedtuners.adapters.abba.config import AbbaConfig
from fedtuners.adapters.abba.layer import AbbaLinear
from fedtuners.adapters.abba.model import AbbaModel
from fedtuners.adapters.registration import register

register("abba", AbbaConfig, AbbaModel)

__all__ = ["Abba", "AbbaConfig", "AbbaLinear", "AbbaModel"]
