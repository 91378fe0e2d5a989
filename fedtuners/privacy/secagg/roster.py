"""Who takes part in one secure sum: the announced keys, the threshold, and a digest of both.

The digest goes into every key that two clients agree on. A server that tells two clients different
lists thereby leaves them with different keys: shares do not open, masks do not cancel.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedtuners.privacy.secagg.identity import Signer, Trusted
from fedtuners.privacy.secagg.primitives import SecAggError

LEAST = 2  # a sum over one client is that client's upload


@dataclass(frozen=True)
class Announcement:
    """The public keys of one client for one sum, in hex, signed if its site has a key."""

    client: int
    channel: str  # seals shares
    mask: str  # agrees on pairwise masks
    signer: str = ""
    signature: str = ""

    def signed(self, session: str, signer: Signer) -> "Announcement":
        """The same keys, signed for this sum."""
        signature = signer.sign(self._text(session))
        return Announcement(self.client, self.channel, self.mask, signer.name, signature)

    def is_signed(self, session: str, trusted: Trusted) -> bool:
        """Whether a trusted site signed these keys for this sum and this client."""
        return trusted.verify(self.signer, self.signature, self._text(session))

    def _text(self, session: str) -> bytes:
        fields = ["fedtuners/secagg", session, self.client, self.channel, self.mask]
        return json.dumps(fields).encode()


@dataclass(frozen=True)
class Roster:
    """The clients of one sum, and how many of them it takes to unmask it."""

    session: str  # names run, round and purpose
    threshold: int
    members: tuple[Announcement, ...]  # in order of client

    @classmethod
    def read(cls, session: str, threshold: int, entries: Sequence[dict[str, Any]]) -> "Roster":
        """The roster in a message; SecAggError when it is none that may be used."""
        try:
            members = sorted((Announcement(**entry) for entry in entries), key=lambda a: a.client)
            for member in members:
                bytes.fromhex(member.channel + member.mask)
        except (TypeError, ValueError) as error:
            raise SecAggError("the list of participants is not readable.") from error
        roster = cls(session, threshold, tuple(members))
        roster.check()
        return roster

    def check(self) -> None:
        """Raise SecAggError if the threshold is unsafe or a client or a key comes twice."""
        keys = [key for member in self.members for key in (member.channel, member.mask)]
        if len(set(self.clients)) < len(self.clients) or len(set(keys)) < len(keys):
            raise SecAggError("a client or a key is on the list of participants twice.")
        if min(self.clients, default=0) < 0:
            raise SecAggError("a client on the list of participants has a negative number.")
        if self.threshold < LEAST or 2 * self.threshold <= len(self.members):
            raise SecAggError(
                f"a threshold of {self.threshold} is unsafe for {len(self.members)} participants: "
                f"it must be at least {LEAST} and more than half of them."
            )
        if len(self.members) < self.threshold:
            raise SecAggError(
                f"{len(self.members)} participants are fewer than the threshold of "
                f"{self.threshold}."
            )

    def verify(self, trusted: Trusted) -> None:
        """Raise SecAggError unless each member is signed by a trusted site of its own."""
        for member in self.members:
            if not member.is_signed(self.session, trusted):
                raise SecAggError(
                    f"the keys of client {member.client} are not signed by a site on this site's "
                    "list (secagg-peers)."
                )
        if len({member.signer for member in self.members}) < len(self.members):
            raise SecAggError("one site signed the keys of two clients.")

    @property
    def signed(self) -> bool:
        """Whether every member's keys carry a signature; whose, each client looks for itself."""
        return all(member.signature for member in self.members)

    def survivors_text(self, survivors: Sequence[int]) -> bytes:
        """What a client signs to say that the sum of this roster is over these clients."""
        text = ["fedtuners/secagg/survivors", self.digest.hex(), sorted(survivors)]
        return json.dumps(text).encode()

    def check_confirmed(
        self, survivors: Sequence[int], confirmations: Mapping[str, str], trusted: Trusted
    ) -> None:
        """Raise SecAggError unless the threshold's number of survivors signed this list of them."""
        text = self.survivors_text(survivors)
        good = sum(
            trusted.verify(self.member(client).signer, confirmations.get(str(client), ""), text)
            for client in set(survivors)
        )
        if good < self.threshold:
            raise SecAggError(
                f"only {good} participants signed the same list of survivors; {self.threshold} "
                "must: the server may have told them different ones."
            )

    def entries(self) -> list[dict[str, Any]]:
        """The members as they travel."""
        return [asdict(member) for member in self.members]

    @property
    def clients(self) -> list[int]:
        """The numbers of the clients, in order."""
        return [member.client for member in self.members]

    def member(self, client: int) -> Announcement:
        """One client's keys; SecAggError when it does not take part."""
        for member in self.members:
            if member.client == client:
                return member
        raise SecAggError(f"client {client} is not on the list of participants.")

    @property
    def digest(self) -> bytes:
        """SHA-256 of session, threshold and members."""
        text = json.dumps([self.session, self.threshold, self.entries()], sort_keys=True)
        return hashlib.sha256(text.encode()).digest()


def point(client: int) -> int:
    """Where a client's shares are evaluated: never 0, which is the secret."""
    return client + 1


def threshold(fraction: float, clients: int) -> int:
    """The least number of clients that unmask a sum: a fraction, but more than half, at least 2."""
    return max(LEAST, clients // 2 + 1, math.ceil(fraction * clients))
