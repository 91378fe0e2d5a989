"""Signed keys: only sites on one's own list take part, each as one client."""

from pathlib import Path

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
