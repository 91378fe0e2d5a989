"""Example-level differential privacy on the clients: DP-SGD, accounting, ledger, private start."""

from fedtuners.privacy.accounting import Event, PrivacyError, calibrate, choose_delta, epsilon
from fedtuners.privacy.client import PrivateClient
from fedtuners.privacy.ledger import Budget, BudgetError, Ledger, LedgerError
from fedtuners.privacy.plan import Plan, check, forecast, make_plan
from fedtuners.privacy.sampling import units_of

__all__ = [
    "Budget",
    "BudgetError",
    "Event",
    "Ledger",
    "LedgerError",
    "Plan",
    "PrivacyError",
    "PrivateClient",
    "calibrate",
    "check",
    "choose_delta",
    "epsilon",
    "forecast",
    "make_plan",
    "units_of",
]
