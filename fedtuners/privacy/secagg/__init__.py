"""Secure aggregation: a sum of vectors of which nobody but their owners sees any single one.

Double masking with Shamir shares, tolerant of clients that drop out (Bonawitz et al., CCS 2017).
Pure cryptography: how the messages travel is the business of strategies/secure.py.
"""

from fedtuners.privacy.secagg.client import ClientSession
from fedtuners.privacy.secagg.encoding import FixedPoint, Total
from fedtuners.privacy.secagg.identity import Signer, Trusted
from fedtuners.privacy.secagg.primitives import Ring, SecAggError
from fedtuners.privacy.secagg.roster import Announcement, Roster, threshold
from fedtuners.privacy.secagg.server import add_up, unmask

__all__ = [
    "Announcement",
    "ClientSession",
    "FixedPoint",
    "Ring",
    "Roster",
    "SecAggError",
    "Signer",
    "Total",
    "Trusted",
    "add_up",
    "threshold",
    "unmask",
]
