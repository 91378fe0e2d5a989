"""What a run needs to go on after its process, or the whole machine, died: a file after each round.

    checkpoint/round-00003.safetensors     the global tensors; in its header, everything else
    checkpoint/<content hash>.safetensors  what every participant holds besides them, stored once

Whatever else a round uses is a function of (seed, round, client), so a run that goes on from here
ends as if it had never stopped. A file appears under its name only when it is whole and on the
disk. The last two rounds are kept: should the newest not be readable, the one before it serves.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from logging import WARNING
from pathlib import Path
from typing import Any

from flwr.common import log
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedtuners.config import ConfigError
from strategies.algebra import State
from strategies.base import AdapterStrategy
from strategies.exchange import Exchange
from strategies.messages import DIGEST
from strategies.packing import content_hash

KEPT = 2  # rounds
Bytes = dict[int, dict[int, int]]  # round → client → bytes


class DamagedError(ValueError):
    """A checkpoint file that does not hold what was written."""


@dataclass
class Checkpoint:
    """A run after `completed` rounds (0: after its start)."""

    run: str  # the name by which clients keep its pieces
    config: str  # resolved, as it travels
    completed: int
    evaluated: int
    best: tuple[float, int]
    state: State
    shared: dict[str, State]  # by content hash, in the order they apply
    sites: list[str] = field(default_factory=list)  # who is client 0, 1, …, where that matters
    held: dict[int, list[str]] = field(default_factory=dict)  # pieces each client holds
    start: list[str] = field(default_factory=list)  # pieces whose bytes belong to the start
    down: Bytes = field(default_factory=dict)
    up: Bytes = field(default_factory=dict)
    start_seconds: float = 0.0
    seconds: float = 0.0  # spent on the run so far

    @classmethod
    def take(cls, strategy: AdapterStrategy, exchange: Exchange, **about: Any) -> "Checkpoint":
        """The present state of a run; `about` gives config, start_seconds and seconds."""
        return cls(
            run=exchange.run,
            completed=strategy.completed,
            evaluated=strategy.evaluated,
            best=strategy.best,
            state=strategy.state,
            shared=strategy.shared,
            sites=exchange.sites,
            held={client: sorted(held) for client, held in exchange.held.items()},
            start=sorted(exchange.start),
            down=exchange.traffic.down,
            up=exchange.traffic.up,
            **about,
        )

    def restore(self, strategy: AdapterStrategy, exchange: Exchange) -> None:
        """Put a strategy and an exchange that is already set up where the run was."""
        strategy.state, strategy.best = self.state, self.best
        strategy.completed, strategy.evaluated = self.completed, self.evaluated
        for state in self.shared.values():
            strategy.share(state)
        exchange.start.update(self.start)
        for client, held in self.held.items():
            exchange.held[client].update(held)
        traffic = exchange.traffic
        for now, before in ((traffic.down, self.down), (traffic.up, self.up)):
            for round_, sizes in before.items():
                for client, size in sizes.items():
                    traffic.add(now, round_, client, size)

    def save(self, folder: Path) -> None:
        """Write into `folder`; OSError or SafetensorError when the disk does not take it."""
        folder.mkdir(exist_ok=True)
        for digest, state in self.shared.items():
            path = folder / f"{digest}.safetensors"
            if not path.exists():
                write_tensors(path, state, {})
        write_tensors(folder / _name(self.completed), self.state, self._header())
        for path in _rounds(folder)[KEPT:]:
            path.unlink(missing_ok=True)

    def _header(self) -> dict[str, str]:
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "state"}
        about = own | {"shared": list(self.shared), "state": content_hash(self.state)}
        text = json.dumps(about)
        return {"checkpoint": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def load(folder: Path) -> Checkpoint:
    """The newest checkpoint that is whole.

    Raises
    ------
    ConfigError
        If there is none.
    """
    for path in _rounds(folder):
        try:
            return _read(path)
        except (OSError, SafetensorError, ValueError) as error:
            log(WARNING, "%s cannot be used: %s", path, error)
    raise ConfigError(f"resume: no usable checkpoint in {folder}; start the run anew")


def write_tensors(path: Path, state: Mapping[str, Any], header: dict[str, str]) -> None:
    """Write a safetensors file so that its name never stands for half a file."""
    part = path.with_suffix(".part")
    try:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, part, header)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, must be on the disk
    finally:
        os.close(folder)


def _read(path: Path) -> Checkpoint:
    state, header = _tensors(path)
    text = header.get("checkpoint", "")
    if hashlib.sha256(text.encode()).hexdigest() != header.get("sha256"):
        raise DamagedError("its header is not what was written")
    about: dict[str, Any] = json.loads(text)
    if content_hash(state) != about["state"]:
        raise DamagedError("its tensors are not what was written")
    shared = {digest: _piece(path.parent, digest) for digest in about["shared"]}
    held = {int(client): names for client, names in about["held"].items()}
    numbers = {key: _bytes(about[key]) for key in ("down", "up")}
    best = (float(about["best"][0]), int(about["best"][1]))
    return Checkpoint(
        **about | numbers | {"state": state, "shared": shared, "held": held, "best": best}
    )


def _tensors(path: Path) -> tuple[State, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _piece(folder: Path, digest: str) -> State:
    state, _ = _tensors(folder / f"{digest}.safetensors")
    if content_hash(state)[:DIGEST] != digest:
        raise DamagedError(f"the shared tensors {digest} are not what was written")
    return state


def _bytes(saved: dict[str, dict[str, int]]) -> Bytes:
    return {int(r): {int(c): size for c, size in sizes.items()} for r, sizes in saved.items()}


def _name(completed: int) -> str:
    return f"round-{completed:05}.safetensors"


def _rounds(folder: Path) -> list[Path]:
    """The files of finished rounds, the newest first."""
    return sorted(folder.glob("round-*.safetensors"), reverse=True)
