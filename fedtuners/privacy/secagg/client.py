"""A client's side of the protocol (Bonawitz et al., CCS 2017, https://eprint.iacr.org/2017/281).

    announce → share → protect → (confirm →) reveal

Each step happens once and in this order. A client masks its vector with a mask of its own and one
per peer, equal and opposite on the peer's side; shares of the secrets behind both lie with the
peers. To unmask, it gives for each peer *either* the share of its own mask, if that peer's vector
is in the sum, *or* the share of its pairwise key, if not: both would bare the peer's vector. Sites
with signing keys first sign whose sum it is (the paper's consistency check), so that a server
cannot tell two of them different lists of survivors.

Between messages the session is JSON, for a process that does not outlive them.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedtuners.privacy.secagg.identity import Signer, Trusted
from fedtuners.privacy.secagg.primitives import (
    KEY_BYTES,
    Ring,
    SecAggError,
    agree,
    key_pair,
    mask,
    public_key,
    seal,
    unseal,
)
from fedtuners.privacy.secagg.roster import Announcement, Roster, point
from fedtuners.privacy.secagg.shamir import SHARE_BYTES, split

ANNOUNCED, SHARED, PROTECTED, REVEALED = "announced", "shared", "protected", "revealed"
CHANNEL, PAIRWISE = "channel", "pairwise"


@dataclass
class ClientSession:
    """What a client must remember between the messages of one sum. All bytes are in hex."""

    session: str
    client: int
    stage: str
    channel: str = ""  # private keys
    mask: str = ""
    seed: str = ""  # of the mask of its own
    threshold: int = 0
    members: list[dict[str, Any]] = field(default_factory=list)
    shares: dict[str, list[str]] = field(default_factory=dict)  # peer → of its mask key, its seed
    confirmed: list[int] = field(default_factory=list)  # the survivors that this client has signed

    @classmethod
    def announce(
        cls, session: str, client: int, signer: Signer | None = None
    ) -> tuple["ClientSession", Announcement]:
        """Start: new keys for this sum alone, and what to tell of them."""
        (channel, channel_public), (pairwise, pairwise_public) = key_pair(), key_pair()
        announcement = Announcement(client, channel_public.hex(), pairwise_public.hex())
        state = cls(
            session=session,
            client=client,
            stage=ANNOUNCED,
            channel=channel.hex(),
            mask=pairwise.hex(),
            seed=secrets.token_bytes(KEY_BYTES).hex(),
        )
        return state, announcement.signed(session, signer) if signer else announcement

    def share(
        self, entries: Sequence[dict[str, Any]], threshold: int, trusted: Trusted | None = None
    ) -> dict[int, str]:
        """Accept the list of participants; returns for each peer its sealed shares, in hex."""
        self._advance(ANNOUNCED, SHARED)
        roster = Roster.read(self.session, threshold, entries)
        own = roster.member(self.client)
        mine = [_public(self.channel), _public(self.mask)]
        if [own.channel, own.mask] != mine:
            raise SecAggError("the list of participants has other keys for this client.")
        if trusted is not None:
            roster.verify(trusted)
        self.threshold, self.members = threshold, roster.entries()
        points = [point(client) for client in roster.clients]
        keys = split(bytes.fromhex(self.mask), threshold, points)
        seeds = split(bytes.fromhex(self.seed), threshold, points)
        at = point(self.client)
        self.shares = {str(self.client): [keys[at].hex(), seeds[at].hex()]}
        return {
            peer: seal(
                self._channel_key(roster, peer, self.client, peer),
                keys[point(peer)] + seeds[point(peer)],
                _between(self.client, peer),
            ).hex()
            for peer in roster.clients
            if peer != self.client
        }

    def protect(self, mailbox: Mapping[str, str], vector: Ring) -> Ring:
        """Open the peers' shares, and return the vector masked against all who sent some."""
        self._advance(SHARED, PROTECTED)
        roster = self._roster()
        for peer in sorted(int(peer) for peer in mailbox):
            if peer == self.client:
                raise SecAggError("this client was sent shares in its own name.")
            key = self._channel_key(roster, peer, peer, self.client)
            sealed = bytes.fromhex(mailbox[str(peer)])
            opened = unseal(key, sealed, _between(peer, self.client))
            halves = opened[:SHARE_BYTES], opened[SHARE_BYTES:]
            self.shares[str(peer)] = [half.hex() for half in halves]
        if len(self.shares) < roster.threshold:
            raise SecAggError(
                f"only {len(self.shares)} participants sent shares; {roster.threshold} must."
            )
        private = bytes.fromhex(self.mask)
        masked = vector + mask(bytes.fromhex(self.seed), len(vector), vector.dtype)
        for peer in self._peers():
            if peer != self.client:
                apply_pairwise(masked, roster, private, self.client, peer)
        self.channel = self.mask = self.seed = ""  # the peers hold what is still needed
        return masked

    def confirm(self, survivors: Sequence[int], signer: Signer) -> str:
        """Sign whose vectors are in the sum that this client will help to unmask: one list."""
        if self.stage != PROTECTED or self.confirmed:
            raise SecAggError("this client signs one list of survivors, after its upload.")
        self._check(survivors)
        self.confirmed = sorted(survivors)
        return signer.sign(self._roster().survivors_text(self.confirmed))

    def reveal(
        self,
        survivors: Sequence[int],
        confirmations: Mapping[str, str] | None = None,
        trusted: Trusted | None = None,
    ) -> dict[str, dict[str, str]]:
        """Return shares for unmasking the sum of the survivors: once, and one kind per peer.

        A client that trusts certain sites' keys wants the threshold's number of `confirmations` of
        this very list, by client, and its own among them.
        """
        self._advance(PROTECTED, REVEALED)
        self._check(survivors)
        present, peers = set(survivors), set(self._peers())
        if (self.confirmed or trusted is not None) and present != set(self.confirmed):
            raise SecAggError("this client has not signed that these are the survivors.")
        if trusted is not None:
            self._roster().check_confirmed(survivors, confirmations or {}, trusted)
        shares = self.shares
        self.shares = {}
        return {
            "seeds": {str(peer): shares[str(peer)][1] for peer in sorted(present)},
            "keys": {str(peer): shares[str(peer)][0] for peer in sorted(peers - present)},
        }

    def to_json(self) -> str:
        """The session for its file, private keys included."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ClientSession":
        """The inverse of `to_json`."""
        return cls(**json.loads(text))

    def _check(self, survivors: Sequence[int]) -> None:
        """Raise SecAggError unless a sum over these may be unmasked."""
        present = set(survivors)
        if not present <= set(self._peers()) or self.client not in present:
            raise SecAggError("the sum is not over participants of this round, us included.")
        if len(present) < self.threshold:
            raise SecAggError(
                f"a sum over {len(present)} clients is below the threshold of {self.threshold}: "
                "it will not be unmasked."
            )

    def _advance(self, stage: str, to: str) -> None:
        if self.stage != stage:
            raise SecAggError(f"this client has {self.stage}, and what comes next is not: {to}.")
        self.stage = to

    def _peers(self) -> list[int]:
        """Everybody whose shares are here, oneself included."""
        return sorted(int(peer) for peer in self.shares)

    def _roster(self) -> Roster:
        return Roster.read(self.session, self.threshold, self.members)

    def _channel_key(self, roster: Roster, peer: int, sender: int, receiver: int) -> bytes:
        public = bytes.fromhex(roster.member(peer).channel)
        context = roster.digest + _between(sender, receiver)
        return agree(bytes.fromhex(self.channel), public, CHANNEL, context)


def apply_pairwise(masked: Ring, roster: Roster, private: bytes, client: int, peer: int) -> None:
    """Add in place the mask that `client` shares with `peer`, whose side has it subtracted."""
    context = roster.digest + _between(*sorted((client, peer)))
    key = agree(private, bytes.fromhex(roster.member(peer).mask), PAIRWISE, context)
    stream = mask(key, len(masked), masked.dtype)
    if client < peer:
        masked += stream
    else:
        masked -= stream


def _between(sender: int, receiver: int) -> bytes:
    return f"{sender}>{receiver}".encode()


def _public(private: str) -> str:
    return public_key(bytes.fromhex(private)).hex()
