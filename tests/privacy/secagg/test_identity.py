"""Signed keys: only sites on one's own list take part, each as one client, and in one sum."""

from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from fedtuners.privacy.secagg import ClientSession, SecAggError, Signer, Trusted

SESSION = '["run", 1, "train"]'


def node_key(folder: Path, name: str) -> Path:
    """An EC key pair in OpenSSH files, as `ssh-keygen -t ecdsa -b 384` writes them."""
    key = generate_private_key(SECP384R1())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    (folder / name).write_bytes(secret)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (folder / f"{name}.pub").write_bytes(public + b" somebody@somewhere\n")
    return folder / name


@pytest.fixture
def sites(tmp_path: Path) -> tuple[list[Signer], Trusted]:
    """Three sites and the list of their keys."""
    paths = [node_key(tmp_path, f"site{index}") for index in range(3)]
    listed = tmp_path / "peers"
    listed.write_text("".join(Path(f"{path}.pub").read_text() for path in paths))
    return [Signer.load(path) for path in paths], Trusted.load(listed)


def test_signed_keys_of_listed_sites_are_accepted(sites: tuple[list[Signer], Trusted]) -> None:
    signers, trusted = sites
    made = [ClientSession.announce(SESSION, c, signer) for c, signer in enumerate(signers)]
    entries = [vars(announcement) for _, announcement in made]
    assert set(made[0][0].share(entries, 2, trusted)) == {1, 2}


@pytest.mark.parametrize("forged", ["unsigned", "stranger", "other round", "other client", "key"])
def test_everything_else_is_refused(
    sites: tuple[list[Signer], Trusted], tmp_path: Path, forged: str
) -> None:
    signers, trusted = sites
    made = [ClientSession.announce(SESSION, c, signer) for c, signer in enumerate(signers)]
    entries = [dict(vars(announcement)) for _, announcement in made]
    fresh = ClientSession.announce(SESSION, 2)[1]
    entries[2] = {
        "unsigned": vars(fresh),
        "stranger": vars(fresh.signed(SESSION, Signer.load(node_key(tmp_path, "stranger")))),
        "other round": vars(fresh.signed('["run", 2, "train"]', signers[2])),
        "other client": {**vars(ClientSession.announce(SESSION, 5, signers[2])[1]), "client": 2},
        "key": {**entries[2], "mask": fresh.mask},
    }[forged]
    with pytest.raises(SecAggError, match="keys of client 2 are not signed by a site"):
        made[0][0].share(entries, 2, trusted)


def test_one_site_counts_as_one_client(sites: tuple[list[Signer], Trusted]) -> None:
    signers, trusted = sites
    made = [ClientSession.announce(SESSION, c, signers[c % 2]) for c in range(3)]
    with pytest.raises(SecAggError, match="one site signed the keys of two clients"):
        made[0][0].share([vars(announcement) for _, announcement in made], 2, trusted)


def uploaded(signers: list[Signer], trusted: Trusted) -> list[ClientSession]:
    """Sessions of clients that have all uploaded."""
    made = [ClientSession.announce(SESSION, c, signer) for c, signer in enumerate(signers)]
    entries = [vars(announcement) for _, announcement in made]
    sessions = [session for session, _ in made]
    sealed = [session.share(entries, 2, trusted) for session in sessions]
    for client, session in enumerate(sessions):
        mailbox = {str(p): shares[client] for p, shares in enumerate(sealed) if p != client}
        session.protect(mailbox, np.zeros(3, np.uint64))
    return [ClientSession.from_json(session.to_json()) for session in sessions]


def test_survivors_that_all_have_signed_are_unmasked(
    sites: tuple[list[Signer], Trusted],
) -> None:
    signers, trusted = sites
    sessions = uploaded(signers, trusted)
    signed = {str(c): sessions[c].confirm([1, 0], signers[c]) for c in (0, 1)}
    given = sessions[0].reveal([0, 1], signed, trusted)
    assert given["seeds"].keys() == {"0", "1"}
    assert given["keys"].keys() == {"2"}


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ("no signatures", "only 0 participants signed"),
        ("one signature", "only 1 participants signed the same list of survivors; 2 must"),
        ("of another list", "only 1 participants signed"),
        ("in another's name", "only 1 participants signed"),
        ("of a stranger", "only 1 participants signed"),
        ("another list at the end", "has not signed that these are the survivors"),
    ],
)
def test_different_survivors_for_different_clients_are_noticed(
    sites: tuple[list[Signer], Trusted], tmp_path: Path, lie: str, words: str
) -> None:
    signers, trusted = sites
    sessions = uploaded(signers, trusted)
    own = sessions[0].confirm([0, 1], signers[0])
    everybody = sessions[1].confirm([0, 1, 2], signers[1])
    text = sessions[0]._roster().survivors_text([0, 1])
    told, signed = {
        "no signatures": ([0, 1], {}),
        "one signature": ([0, 1], {"0": own}),
        "of another list": ([0, 1], {"0": own, "1": everybody}),
        "in another's name": ([0, 1], {"0": own, "1": own}),
        "of a stranger": (
            [0, 1],
            {"0": own, "1": Signer.load(node_key(tmp_path, "stranger")).sign(text)},
        ),
        "another list at the end": ([0, 1, 2], {"0": own, "1": everybody}),
    }[lie]
    with pytest.raises(SecAggError, match=words):
        sessions[0].reveal(told, signed, trusted)


def test_a_client_signs_one_list_and_not_before_its_upload(
    sites: tuple[list[Signer], Trusted],
) -> None:
    signers, trusted = sites
    early, _ = ClientSession.announce(SESSION, 0, signers[0])
    with pytest.raises(SecAggError, match="after its upload"):
        early.confirm([0, 1], signers[0])
    session = uploaded(signers, trusted)[0]
    with pytest.raises(SecAggError, match="below the threshold"):
        session.confirm([0], signers[0])
    session.confirm([0, 1], signers[0])
    with pytest.raises(SecAggError, match="one list of survivors"):
        session.confirm([0, 1, 2], signers[0])


def test_files_that_hold_no_ec_key_are_named(tmp_path: Path) -> None:
    other = tmp_path / "ed25519"
    other.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
        )
    )
    with pytest.raises(SecAggError, match="ed25519 holds no EC key"):
        Signer.load(other)
    with pytest.raises(SecAggError, match="no signing key can be read from absent"):
        Signer.load(tmp_path / "absent")
    (tmp_path / "peers").write_text("not a key\n")
    with pytest.raises(SecAggError, match="no list of public keys"):
        Trusted.load(tmp_path / "peers")
