"""What a client keeps on its own disk: the pieces of a run, by content hash.

A piece that is damaged or gone is simply not held: the client says so and is sent it again.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from strategies.algebra import State
from strategies.messages import Piece, text_hash
from strategies.packing import content_hash, unpack


class Store:
    """Pieces of one run for one client, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)

    def put(self, digest: str, piece: Piece) -> None:
        """Keep a piece; ValueError if it is not what its hash says."""
        path = self._path(digest, piece.arrays is not None)
        part = path.with_suffix(f".{os.getpid()}")
        if piece.arrays is None:
            self._verify(text_hash(piece.text), digest)
            part.write_text(piece.text, encoding="utf-8")
        else:
            state = unpack(piece.arrays, piece.text)
            self._verify(content_hash(state), digest)
            save_file(state, part)
        os.replace(part, path)

    def text(self, digest: str) -> str | None:
        """A text piece, or None when it is not held."""
        path = self._path(digest, tensors=False)
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        return text if text_hash(text).startswith(digest) else None

    def tensors(self, digest: str) -> State | None:
        """A piece of tensors, or None when it is not held."""
        try:
            state: State = load_file(self._path(digest, tensors=True))
        except (OSError, SafetensorError):
            return None
        return state if content_hash(state).startswith(digest) else None

    def read(self, digests: Sequence[str]) -> tuple[dict[str, State], list[str]]:
        """The pieces of tensors that are held and whole, and the hashes of those that are not."""
        found = {digest: self.tensors(digest) for digest in digests}
        whole = {digest: state for digest, state in found.items() if state is not None}
        return whole, [digest for digest in digests if digest not in whole]

    def _path(self, digest: str, tensors: bool) -> Path:
        if not digest.isalnum():
            raise ValueError(f"'{digest}' is not a content hash")
        return self.folder / f"{digest}.{'safetensors' if tensors else 'json'}"

    @staticmethod
    def _verify(found: str, digest: str) -> None:
        if not found.startswith(digest):
            raise ValueError(f"the piece sent as {digest} hashes to {found[: len(digest)]}")
