"""The protocol without messages: drop-outs, refusals, and masks that hide what they cover."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from fedtuners.privacy.secagg import (
    Announcement,
    ClientSession,
    FixedPoint,
    Ring,
    Roster,
    SecAggError,
    add_up,
    threshold,
    unmask,
)
from fedtuners.privacy.secagg.primitives import agree, key_pair, mask, seal, unseal

SESSION = '["run", 1, "train"]'


class Round:
    """One round in which some clients drop out before each step."""

    def __init__(self, clients: int, numbers: int = 50, needed: int | None = None) -> None:
        self.needed = threshold(0.66, clients) if needed is None else needed
        self.fixed = FixedPoint(clients, 8.0, 100, 64)
        random = np.random.default_rng(clients)
        self.values = {client: random.normal(size=numbers) for client in range(clients)}
        self.sessions: dict[int, ClientSession] = {}
        self.keys: dict[int, Announcement] = {}
        self.sealed: dict[int, dict[int, str]] = {}
        self.masked: dict[int, Ring] = {}
        self.reveals: dict[int, Any] = {}

    def announce(self, without: Sequence[int] = ()) -> None:
        for client in self.values.keys() - set(without):
            self.sessions[client], self.keys[client] = ClientSession.announce(SESSION, client)

    def share(self, without: Sequence[int] = ()) -> None:
        self.roster = Roster.read(
            SESSION, self.needed, [vars(announcement) for announcement in self.keys.values()]
        )
        for client in self.keys.keys() - set(without):
            self._stored(client)
            self.sealed[client] = self.sessions[client].share(self.roster.entries(), self.needed)

    def upload(self, without: Sequence[int] = ()) -> None:
        for client in self.sealed.keys() - set(without):
            self._stored(client)
            mailbox = {str(p): s[client] for p, s in self.sealed.items() if p != client}
            vector = self.fixed.encode(self.values[client], client + 1)
            self.masked[client] = self.sessions[client].protect(mailbox, vector)

    def reveal(self, without: Sequence[int] = ()) -> None:
        for client in self.masked.keys() - set(without):
            self._stored(client)
            self.reveals[client] = self.sessions[client].reveal(sorted(self.masked))

    def mean(self) -> np.ndarray:
        survivors = sorted(self.masked)
        summed = add_up([self.masked[client] for client in survivors])
        clear = unmask(summed, self.roster, sorted(self.sealed), survivors, self.reveals)
        return self.fixed.decode(clear).mean

    def expected(self) -> np.ndarray:
        weight = sum(client + 1 for client in self.masked)
        return sum((c + 1) / weight * self.values[c] for c in self.masked)  # type: ignore[return-value]

    def _stored(self, client: int) -> None:
        """Processes do not outlive a message."""
        self.sessions[client] = ClientSession.from_json(self.sessions[client].to_json())


def play(clients: int, *without: Sequence[int]) -> Round:
    """A round up to unmasking, with the drop-outs of each step."""
    round_ = Round(clients)
    steps = (round_.announce, round_.share, round_.upload, round_.reveal)
    for step, absent in zip(steps, without, strict=True):
        step(absent)
    return round_


@pytest.mark.parametrize(
    "without",
    [
        ((), (), (), ()),
        *[tuple((2,) if i == step else () for i in range(4)) for step in range(4)],
        *[tuple((0, 3) if i == step else () for i in range(4)) for step in range(4)],
        ((0,), (), (3,), ()),
        ((), (5,), (), (1,)),
    ],
)
def test_the_sum_is_exact_with_as_many_drop_outs_as_the_threshold_allows(
    without: tuple[Sequence[int], ...],
) -> None:
    round_ = play(6, *without)
    bound = round_.fixed.error_bound(6, sum(c + 1 for c in round_.masked))
    assert round_.needed == 4
    assert np.abs(round_.mean() - round_.expected()).max() <= bound + 1e-15


def test_one_more_drop_out_than_allowed_stops_each_step() -> None:
    gone = (0, 1, 2)
    with pytest.raises(SecAggError, match="3 participants are fewer than the threshold of 4"):
        play(6, gone, (), (), ())
    with pytest.raises(SecAggError, match="only 3 participants sent shares; 4 must"):
        play(6, (), gone, (), ())
    with pytest.raises(SecAggError, match="a sum over 3 clients is below the threshold of 4"):
        play(6, (), (), gone, ())
    with pytest.raises(SecAggError, match="3 clients revealed shares"):
        play(6, (), (), (), gone).mean()


def test_a_client_reveals_once_so_never_both_secrets_of_a_peer() -> None:
    round_ = play(4, (), (), (), (0,))
    first = ClientSession.from_json(round_.sessions[0].to_json())
    given = first.reveal([0, 1, 2])
    assert not given["seeds"].keys() & given["keys"].keys()
    with pytest.raises(SecAggError, match="revealed"):
        first.reveal([0, 1, 3])


def test_a_client_reveals_nothing_for_a_sum_without_it_or_of_strangers() -> None:
    round_ = play(4, (), (), (), range(4))
    with pytest.raises(SecAggError, match="us included"):
        round_.sessions[0].reveal([1, 2, 3])
    with pytest.raises(SecAggError, match="participants of this round"):
        round_.sessions[1].reveal([0, 1, 2, 9])


def test_steps_come_in_order_and_once() -> None:
    round_ = Round(3)
    round_.announce()
    session = round_.sessions[0]
    with pytest.raises(SecAggError, match="announced"):
        session.reveal([0, 1, 2])
    with pytest.raises(SecAggError, match="announced"):
        session.protect({}, np.zeros(3, np.uint64))
    round_.share()
    with pytest.raises(SecAggError, match="shared"):
        round_.sessions[0].share(round_.roster.entries(), round_.needed)
    round_.upload()
    with pytest.raises(SecAggError, match="protected"):
        round_.sessions[0].protect({}, np.zeros(3, np.uint64))


@pytest.mark.parametrize(
    ("clients", "needed", "words"),
    [(4, 2, "more than half"), (4, 1, "unsafe"), (1, 1, "unsafe"), (3, 4, "fewer than")],
)
def test_unsafe_thresholds_are_refused_by_the_client(clients: int, needed: int, words: str) -> None:
    announced = [vars(ClientSession.announce(SESSION, c)[1]) for c in range(clients)]
    session, own = ClientSession.announce(SESSION, 0)
    with pytest.raises(SecAggError, match=words):
        session.share([vars(own), *announced[1:]], needed)


def test_a_server_that_shows_clients_different_lists_breaks_the_round() -> None:
    round_ = Round(3)
    round_.announce()
    entries = [vars(announcement) for announcement in round_.keys.values()]
    impostor = vars(ClientSession.announce(SESSION, 2)[1])
    sealed = {
        0: round_.sessions[0].share(entries, 2),
        1: round_.sessions[1].share([*entries[:2], impostor], 2),
    }
    with pytest.raises(SecAggError, match="altered, or are not for us"):
        round_.sessions[0].protect({"1": sealed[1][0]}, np.zeros(3, np.uint64))


def test_a_server_cannot_put_other_keys_in_a_clients_name() -> None:
    session, _ = ClientSession.announce(SESSION, 0)
    others = [vars(ClientSession.announce(SESSION, c)[1]) for c in range(3)]
    with pytest.raises(SecAggError, match="other keys for this client"):
        session.share(others, 2)


def test_altered_shares_are_noticed() -> None:
    round_ = Round(3)
    round_.announce()
    round_.share()
    sealed = round_.sealed[1][0]
    flipped = ("0" if sealed[0] != "0" else "1") + sealed[1:]
    with pytest.raises(SecAggError, match="altered"):
        round_.sessions[0].protect({"1": flipped, "2": round_.sealed[2][0]}, np.zeros(3, np.uint64))


def test_a_wrong_share_of_a_key_is_noticed() -> None:
    round_ = play(5, (), (), (4,), ())
    one = round_.reveals[0]["keys"]
    round_.reveals[0] = {**round_.reveals[0], "keys": {"4": "00" + one["4"][2:-2] + "00"}}
    with pytest.raises(SecAggError, match=r"not of one key|cannot be joined"):
        round_.mean()


def test_a_wrong_share_of_a_seed_is_noticed() -> None:
    round_ = play(4, (), (), (), ())
    seeds = dict(round_.reveals[0]["seeds"])
    seeds["1"] = seeds["2"]
    round_.reveals[0] = {**round_.reveals[0], "seeds": seeds}
    with pytest.raises(SecAggError, match=r"did not cancel|cannot be joined"):
        round_.mean()


def test_clients_or_keys_that_come_twice_are_refused() -> None:
    one = ClientSession.announce(SESSION, 0)[1]
    two = ClientSession.announce(SESSION, 1)[1]
    for entries in ([one, one, two], [one, replace(one, client=1), two], [one, two, two]):
        with pytest.raises(SecAggError, match="twice"):
            Roster.read(SESSION, 2, [vars(entry) for entry in entries])


@pytest.mark.parametrize("entry", [{}, {"client": 0}, {"client": 0, "channel": "x", "mask": "y"}])
def test_a_list_that_is_none_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(SecAggError, match="not readable"):
        Roster.read(SESSION, 2, [entry])


@pytest.mark.parametrize(("fraction", "clients", "needed"), [
    (0.66, 2, 2), (0.66, 3, 2), (0.66, 4, 3), (0.66, 20, 14), (0.66, 100, 66),
    (0.51, 2, 2), (0.51, 4, 3), (0.51, 20, 11), (1.0, 5, 5), (0.66, 1, 2),
])  # fmt: skip
def test_thresholds(fraction: float, clients: int, needed: int) -> None:
    assert threshold(fraction, clients) == needed


def looks_uniform(vector: Ring) -> bool:
    """χ² of the bytes at every position of the ring elements, at one in a million."""
    limit = chi2.isf(1e-6 / 8, 255)
    columns = vector.view(np.uint8).reshape(len(vector), -1).T
    for column in columns:
        counts = np.bincount(column, minlength=256)
        if ((counts - len(vector) / 256) ** 2).sum() / (len(vector) / 256) > limit:
            return False
    return True


def test_masked_vectors_look_uniform_and_plain_ones_do_not() -> None:
    round_ = Round(3, numbers=20_000)
    for step in (round_.announce, round_.share, round_.upload):
        step()
    for client, masked in round_.masked.items():
        plain = round_.fixed.encode(round_.values[client], client + 1)
        assert looks_uniform(masked)
        assert not looks_uniform(plain)
        same = np.corrcoef(masked.astype(np.float64), plain.view(np.int64).astype(np.float64))
        assert abs(same[0, 1]) < 0.05


@pytest.mark.parametrize("kind", ["seeds", "keys"])
def test_each_of_the_two_masks_hides_the_upload_alone(kind: str) -> None:
    """What the server may learn of a client, its seed or its key, leaves the other mask on."""
    round_ = Round(3, numbers=20_000)
    for step in (round_.announce, round_.share):
        step()
    session = ClientSession.from_json(round_.sessions[0].to_json())
    round_.upload()
    left = round_.masked[0].copy()
    if kind == "seeds":
        left -= mask(bytes.fromhex(session.seed), len(left), left.dtype)
    else:
        from fedtuners.privacy.secagg.client import apply_pairwise

        undo = np.zeros_like(left)
        for peer in (1, 2):
            apply_pairwise(undo, round_.roster, bytes.fromhex(session.mask), 0, peer)
        left -= undo
    assert looks_uniform(left)


def test_keys_are_new_in_every_round_and_forgotten_after_the_upload() -> None:
    first, second = (ClientSession.announce(SESSION, 0)[0] for _ in range(2))
    assert {first.channel, first.mask, first.seed}.isdisjoint(
        {second.channel, second.mask, second.seed}
    )
    done = play(3, (), (), (), (0,)).sessions[0]
    assert (done.channel, done.mask, done.seed) == ("", "", "")


def test_primitives() -> None:
    (a, A), (b, B) = key_pair(), key_pair()
    key = agree(a, B, "channel", b"x")
    assert key == agree(b, A, "channel", b"x")
    assert len({key, agree(a, B, "pairwise", b"x"), agree(a, B, "channel", b"y")}) == 3
    assert unseal(key, seal(key, b"text", b"from"), b"from") == b"text"
    with pytest.raises(SecAggError, match="altered"):
        unseal(key, seal(key, b"text", b"from"), b"to")
    with pytest.raises(SecAggError, match="not a usable X25519 key"):
        agree(a, bytes(32), "channel", b"")
    # AES-256, NIST SP 800-38A F.1.5's key: the first block of the stream is E(0).
    known = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import ECB

    block = Cipher(AES(known), ECB()).encryptor().update(bytes(16))
    assert mask(known, 2, np.dtype(np.uint64)).tobytes() == block
