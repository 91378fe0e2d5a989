"""A client's pieces on disk: whole or not held, and never outside their folder."""

import os
from pathlib import Path

import pytest
import torch

from client_app.store import Store
from strategies.algebra import State
from strategies.messages import Piece, text_hash
from strategies.packing import content_hash, manifest, pack

STATE: State = {"x.lora_A": torch.randn(2, 3), "y.lora_sb_R": torch.ones(2, 2).bfloat16()}
KEY = content_hash(STATE)[:16]
TEXT, NAME = "{}", text_hash("{}")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run" / "client-0")


def tensors() -> Piece:
    return Piece(manifest(STATE), pack(STATE))


def test_a_piece_comes_back_bit_for_bit(store: Store) -> None:
    store.put(KEY, tensors())
    store.put(NAME, Piece(TEXT))

    again = Store(store.folder)
    whole, damaged = again.read([KEY])

    assert again.text(NAME) == TEXT
    assert damaged == []
    assert content_hash(whole[KEY]) == content_hash(STATE)
    assert whole[KEY]["y.lora_sb_R"].dtype == torch.bfloat16


def test_what_was_never_sent_is_missing(store: Store) -> None:
    assert store.text(NAME) is None
    assert store.read([KEY]) == ({}, [KEY])


def test_pieces_come_in_the_order_that_was_asked(store: Store) -> None:
    other = {"x.lora_A": torch.zeros(2, 3)}
    second = content_hash(other)[:16]
    store.put(KEY, tensors())
    store.put(second, Piece(manifest(other), pack(other)))

    assert list(store.read([second, KEY])[0]) == [second, KEY]
    assert list(store.read([KEY, second])[0]) == [KEY, second]


@pytest.mark.parametrize("how", ["cut", "flipped", "garbage", "empty", "binary", "gone"])
def test_a_damaged_piece_is_not_held(store: Store, how: str) -> None:
    store.put(KEY, tensors())
    store.put(NAME, Piece(TEXT))

    for path in store.folder.iterdir():
        content = path.read_bytes()
        damage = {
            "cut": content[:-1],
            "flipped": content[:-1] + bytes([content[-1] ^ 1]),
            "garbage": b"not what was written",
            "empty": b"",
            "binary": b"\xff\xfe\x00\x80" * 8,
        }
        path.unlink()
        if how in damage:
            path.write_bytes(damage[how])

    assert store.text(NAME) is None
    assert store.read([KEY]) == ({}, [KEY])
    store.put(KEY, tensors())  # sent again, it is held again
    assert store.read([KEY])[1] == []


def test_a_piece_that_is_not_what_its_hash_says_is_refused(store: Store) -> None:
    forged = {"x.lora_A": torch.zeros(2, 3)}

    with pytest.raises(ValueError, match=f"sent as {KEY} hashes to"):
        store.put(KEY, Piece(manifest(forged), pack(forged)))
    with pytest.raises(ValueError, match=f"sent as {NAME} hashes to"):
        store.put(NAME, Piece("{ }"))

    assert not list(store.folder.iterdir())


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/b", "..", "", "a.b", "/tmp/x", "a\0b", "a b"]
)
def test_a_name_cannot_leave_the_folder(store: Store, name: str) -> None:
    for attempt in (
        lambda: store.put(name, Piece(TEXT)),
        lambda: store.put(name, tensors()),
        lambda: store.text(name),
        lambda: store.tensors(name),
        lambda: store.read([name]),
    ):
        with pytest.raises(ValueError, match="is not a content hash"):
            attempt()

    assert [path for path in store.folder.parent.parent.rglob("*") if path.is_file()] == []


def test_a_write_that_fails_leaves_the_old_piece(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(KEY, tensors())

    def full(*args: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no space"):
            store.put(KEY, tensors())

    assert store.read([KEY])[1] == []
