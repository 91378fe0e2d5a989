"""The server's side: from the sum of masked vectors and the revealed shares to the sum.

It rebuilds the own mask of each client in the sum, and the pairwise key of each client that shared
secrets and then dropped out; never both of one client.
"""

from collections.abc import Mapping, Sequence

from fedtuners.privacy.secagg.client import apply_pairwise
from fedtuners.privacy.secagg.primitives import Ring, SecAggError, mask, public_key
from fedtuners.privacy.secagg.roster import Roster, point
from fedtuners.privacy.secagg.shamir import combine

Reveals = Mapping[int, Mapping[str, Mapping[str, str]]]  # client → what its `reveal` returned


def add_up(vectors: Sequence[Ring]) -> Ring:
    """The sum of masked vectors, in the ring.

    Raises
    ------
    SecAggError
        If there is none.
    """
    if not vectors:
        raise SecAggError("there is no masked vector to add up.")
    total = vectors[0].copy()
    for vector in vectors[1:]:
        total += vector
    return total


def unmask(
    total: Ring,
    roster: Roster,
    sharers: Sequence[int],
    survivors: Sequence[int],
    reveals: Reveals,
) -> Ring:
    """Return the sum of the survivors' vectors, without their masks.

    Parameters
    ----------
    total : Ring
        Σ of the survivors' masked vectors.
    roster : Roster
        Whose keys were announced.
    sharers : sequence of int
        The clients whose shares went round: everybody masked against these.
    survivors : sequence of int
        Those whose vectors are in the sum.
    reveals : Reveals
        By client, at least the threshold of them.

    Raises
    ------
    SecAggError
        If too few clients reveal, or what they reveal does not fit the announced keys.
    """
    if len(reveals) < roster.threshold:
        raise SecAggError(
            f"{len(reveals)} clients revealed shares, and the threshold is {roster.threshold}."
        )
    clear = total.copy()
    for client in survivors:
        clear -= mask(_secret(roster, reveals, "seeds", client), len(total), total.dtype)
    for gone in sorted(set(sharers) - set(survivors)):
        private = _secret(roster, reveals, "keys", gone)
        if public_key(private).hex() != roster.member(gone).mask:
            raise SecAggError(f"the revealed shares of client {gone}'s key are not of one key.")
        for client in survivors:
            # The dropped client's side of each pair is the opposite of what the survivor added.
            apply_pairwise(clear, roster, private, gone, client)
    return clear


def _secret(roster: Roster, reveals: Reveals, kind: str, client: int) -> bytes:
    try:
        shares = {
            point(giver): bytes.fromhex(revealed[kind][str(client)])
            for giver, revealed in reveals.items()
        }
        return combine(shares, roster.threshold)
    except (KeyError, ValueError) as error:
        raise SecAggError(f"the revealed shares of client {client} cannot be joined.") from error
