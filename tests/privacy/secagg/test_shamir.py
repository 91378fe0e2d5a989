"""Shamir sharing: any threshold of shares gives the secret, fewer say nothing."""

import itertools
import secrets

import pytest

from fedtuners.privacy.secagg.shamir import PRIME, SHARE_BYTES, combine, split


def test_any_threshold_of_shares_gives_the_secret_back() -> None:
    secret = secrets.token_bytes(32)
    shares = split(secret, 3, [1, 2, 4, 7, 11])
    for points in itertools.combinations(shares, 3):
        assert combine({point: shares[point] for point in points}, 3) == secret
    assert combine(shares, 3) == secret
    assert all(len(share) == SHARE_BYTES for share in shares.values())


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(31) + b"\x01"])
def test_extreme_secrets_survive(secret: bytes) -> None:
    assert combine(split(secret, 2, [1, 2]), 2) == secret


def test_known_polynomial() -> None:
    """f(x) = 5 + 3x at 1 and 2."""
    shares = {1: (8).to_bytes(33, "big"), 2: (11).to_bytes(33, "big")}
    assert int.from_bytes(combine(shares, 2), "big") == 5


def test_one_share_too_few_fits_every_secret() -> None:
    """For each candidate there is a missing share that makes it the secret."""
    shares = split(secrets.token_bytes(32), 2, [1, 2])
    known = int.from_bytes(shares[1], "big")
    for candidate in (0, 1, 2**255):
        slope = (known - candidate) % PRIME
        other = (candidate + 2 * slope) % PRIME
        forged = {1: shares[1], 2: other.to_bytes(SHARE_BYTES, "big")}
        assert int.from_bytes(combine(forged, 2), "big") == candidate


def test_sharings_of_one_secret_differ() -> None:
    secret = bytes(32)
    assert split(secret, 2, [1, 2]) != split(secret, 2, [1, 2])


def test_prime_is_prime() -> None:
    """Miller–Rabin with forty random bases."""
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(40):
        x = pow(secrets.randbelow(PRIME - 3) + 2, odd, PRIME)
        assert x == 1 or any(pow(x, 2**i, PRIME) == PRIME - 1 for i in range(twos))


@pytest.mark.parametrize(
    ("secret", "threshold", "points", "words"),
    [
        (bytes(31), 2, [1, 2], "31"),
        (bytes(32), 3, [1, 2], "threshold"),
        (bytes(32), 0, [1, 2], "threshold"),
        (bytes(32), 2, [0, 1], "points"),
        (bytes(32), 2, [1, 1, 2], "points"),
    ],
)
def test_what_makes_no_sharing_is_refused(
    secret: bytes, threshold: int, points: list[int], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        split(secret, threshold, points)


def test_too_few_shares_are_refused() -> None:
    shares = split(bytes(32), 3, [1, 2, 3])
    with pytest.raises(ValueError, match="2 shares do not reach the threshold of 3"):
        combine({1: shares[1], 2: shares[2]}, 3)
