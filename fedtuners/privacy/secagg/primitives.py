"""The cryptography that the protocol is made of, each one call of the `cryptography` package.

X25519 (RFC 7748) and HKDF-SHA256 (RFC 5869) agree on keys, AES-256 in counter mode stretches a
key into a mask, ChaCha20-Poly1305 (RFC 8439) seals shares. Every key is used for one purpose, by
one pair, in one round: `purpose` and `context` go into its derivation.
"""

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

KEY_BYTES = 32
Ring = NDArray[np.unsignedinteger]  # integers modulo 2³² or 2⁶⁴: NumPy's wrap-around is the sum


class SecAggError(ValueError):
    """What secure aggregation refuses; its one sentence holds no secret and none of the data."""


def key_pair() -> tuple[bytes, bytes]:
    """Return a new X25519 key as (private, public), 32 bytes each."""
    private = X25519PrivateKey.generate()
    return private.private_bytes_raw(), private.public_key().public_bytes_raw()


def public_key(private: bytes) -> bytes:
    """Return the X25519 public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, purpose: str, context: bytes) -> bytes:
    """Return the 32-byte key that both holders of a private key derive for one purpose.

    Raises
    ------
    SecAggError
        If the public key is none, or one of the few that would fix the secret.
    """
    try:
        peer = X25519PublicKey.from_public_bytes(public)
        secret = X25519PrivateKey.from_private_bytes(private).exchange(peer)
    except ValueError as error:
        raise SecAggError("a peer's public key is not a usable X25519 key.") from error
    info = b"fedtuners/secagg/" + purpose.encode() + b"/" + context
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def mask(key: bytes, length: int, dtype: np.dtype[np.unsignedinteger]) -> Ring:
    """Return `length` uniform ring elements from a 32-byte key: the AES-256-CTR key stream.

    The counter starts at 0, so a key must make one mask only.
    """
    stream = Cipher(AES(key), CTR(bytes(16))).encryptor()
    zeros = bytes(length * dtype.itemsize)
    return np.frombuffer(stream.update(zeros), dtype=dtype.newbyteorder("<"))


def seal(key: bytes, text: bytes, context: bytes) -> bytes:
    """Return the text encrypted and authenticated with its context, under a key of single use."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), text, context)


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes:
    """Return what was sealed; SecAggError when key, context or a byte is not the sealer's."""
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, context)
    except InvalidTag as error:
        raise SecAggError("a peer's sealed shares were altered, or are not for us.") from error
