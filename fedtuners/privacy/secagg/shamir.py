"""Shamir's secret sharing of 32-byte secrets (Shamir, "How to share a secret", 1979).

A secret is the constant term of a random polynomial over the integers modulo a prime; any
`threshold` of its values give it back, and fewer say nothing about it. Python's integers are not
constant-time: what is shared here lives for one round and is never shared twice.
"""

import secrets
from collections.abc import Mapping

PRIME = 2**257 - 93  # the largest below 2²⁵⁷: every 32-byte secret is a residue
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, threshold: int, points: list[int]) -> dict[int, bytes]:
    """Return one share of 33 bytes for each point.

    Parameters
    ----------
    secret : bytes
        32 bytes.
    threshold : int
        How many shares give the secret back.
    points : list[int]
        Where the polynomial is evaluated: distinct and at least 1.

    Raises
    ------
    ValueError
        If the secret has another length, or the threshold and the points make no sharing.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, and this one {len(secret)}.")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"a threshold of {threshold} does not fit {len(points)} shares.")
    if len(set(points)) < len(points) or min(points) < 1:
        raise ValueError("the points of a sharing must be distinct and at least 1.")
    random = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    coefficients = [int.from_bytes(secret, "big"), *random]
    return {point: _evaluate(coefficients, point) for point in points}


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret from at least `threshold` shares by point; more are not needed.

    Raises
    ------
    ValueError
        If there are too few shares, or they are not of one sharing of a 32-byte secret, as far as
        that can be seen.
    """
    if len(shares) < threshold:
        raise ValueError(f"{len(shares)} shares do not reach the threshold of {threshold}.")
    points = sorted(shares)[:threshold]
    secret = 0
    for point in points:
        share = int.from_bytes(shares[point], "big")
        secret = (secret + share * _coefficient(point, points)) % PRIME
    if secret >= 1 << (8 * SECRET_BYTES):
        raise ValueError("the shares are not of one sharing.")
    return secret.to_bytes(SECRET_BYTES, "big")


def _evaluate(coefficients: list[int], point: int) -> bytes:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value.to_bytes(SHARE_BYTES, "big")


def _coefficient(point: int, points: list[int]) -> int:
    """Lagrange's coefficient at 0: Π x_j / (x_j − x) over the other points."""
    numerator = denominator = 1
    for other in points:
        if other != point:
            numerator = numerator * other % PRIME
            denominator = denominator * (other - point) % PRIME
    return numerator * pow(denominator, -1, PRIME) % PRIME
