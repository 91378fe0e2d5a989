"""Signatures that tie a round's keys to the sites' long-lived keys.

A site signs with the EC key that its SuperNode authenticates with, and accepts as peers only
holders of the keys in a file of its own, one OpenSSH public key a line. A server can then neither
put keys of its own in a peer's place nor add participants, for the list is the site's.
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from fedtuners.privacy.secagg.primitives import SecAggError


@dataclass(frozen=True)
class Signer:
    """A site's own signing key."""

    key: EllipticCurvePrivateKey

    @classmethod
    def load(cls, path: Path) -> "Signer":
        """The key in an OpenSSH private key file without a passphrase."""
        try:
            key = load_ssh_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SecAggError(f"no signing key can be read from {path.name}.") from error
        if not isinstance(key, EllipticCurvePrivateKey):
            raise SecAggError(f"{path.name} holds no EC key: make one with ssh-keygen -t ecdsa.")
        return cls(key)

    @property
    def name(self) -> str:
        """The public key, as its line in an OpenSSH file."""
        return _line(self.key.public_key())

    def sign(self, text: bytes) -> str:
        """The ECDSA signature of a text, in hex."""
        return self.key.sign(text, ECDSA(SHA256())).hex()


@dataclass(frozen=True)
class Trusted:
    """The public keys that a site accepts as peers'."""

    keys: frozenset[str]

    @classmethod
    def load(cls, path: Path) -> "Trusted":
        """The keys in a file of OpenSSH public keys, one a line; comments after a key are free."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            keys = [load_ssh_public_key(line.encode()) for line in lines if line.strip()]
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise SecAggError(f"no list of public keys can be read from {path.name}.") from error
        return cls(frozenset(_line(key) for key in keys if isinstance(key, EllipticCurvePublicKey)))

    def verify(self, name: str, signature: str, text: bytes) -> bool:
        """Whether the text was signed by `name`, and `name` is one of the keys."""
        if name not in self.keys:
            return False
        key = load_ssh_public_key(name.encode())
        assert isinstance(key, EllipticCurvePublicKey)
        try:
            key.verify(bytes.fromhex(signature), text, ECDSA(SHA256()))
        except (InvalidSignature, ValueError):
            return False
        return True


def _line(key: EllipticCurvePublicKey) -> str:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
