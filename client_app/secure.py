"""The client's side of secure aggregation: its answers, and its memory between them.

A sum's private keys and shares lie in one file of the client's store from the first message of a
round to the last, readable by its owner alone, and are then deleted. What remains is an empty file
that says that the sum was revealed: a second sum for the same round, over other clients, would let
a server take the difference.
"""

import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord

from client_app.site import Site, SiteError
from fedtuners.config import Config
from fedtuners.privacy.secagg import ClientSession, SecAggError, Signer, Trusted
from fedtuners.privacy.secagg.client import SHARED
from strategies.aggregation import make_aggregation
from strategies.algebra import State
from strategies.messages import SKETCH, TRAIN, Metrics, Request, text_hash
from strategies.packing import manifest, unpack
from strategies.secure import (
    CONFIRM,
    CORE,
    KEYS,
    MASKED,
    RANGE,
    SHARES,
    TRAINED,
    Secagg,
    session_name,
    vector_of,
)


def secure_client(
    config: Config, request: Request, site: Site, folder: Path
) -> "SecureClient | None":
    """The client's part when the run aggregates securely; SiteError if its site insists on that."""
    aggregation = make_aggregation(config)
    if isinstance(aggregation, Secagg):
        return SecureClient(aggregation, request, site, folder)
    if site.secagg_only:
        raise SiteError("this site takes part in runs with aggregation=secagg only")
    return None


class SecureClient:
    """One client's part in one sum, while it answers one message."""

    def __init__(self, settings: Secagg, request: Request, site: Site, folder: Path) -> None:
        self.settings, self.request, self.site = settings, request, site
        self.folder = folder / "secagg"

    def answer(self, kind: str) -> dict[str, Any]:
        """Keys, shares, a signature of the survivors, or what unmasks their sum."""
        purpose = str(self.request.extra["purpose"])
        if purpose not in (TRAINED, RANGE, CORE):
            raise SecAggError(f"there is nothing called '{purpose}' to add up.")
        if kind == KEYS:
            return {"keys": self._announce(purpose)}
        session = self._load(purpose)
        if kind == SHARES:
            entries, threshold = self.request.extra["roster"], int(self.request.extra["threshold"])
            shares = session.share(entries, threshold, self._trusted())
            self._save(purpose, session)
            return {"shares": {str(peer): sealed for peer, sealed in shares.items()}}
        survivors = [int(client) for client in self.request.extra["survivors"]]
        if kind == CONFIRM:
            confirmation = session.confirm(survivors, self._signer())
            self._save(purpose, session)
            return {"confirmation": confirmation}
        confirmations = self.request.extra.get("confirmations", {})
        revealed = session.reveal(survivors, confirmations, self._trusted())
        self._path(purpose, "revealed").touch()
        self._path(purpose, "json").unlink()
        return revealed

    def ready(self, kind: str) -> None:
        """Raise SecAggError, before any work, unless the sum this upload is for is under way."""
        self.purpose = upload_purpose(kind, self.request)
        if self._load(self.purpose).stage != SHARED:
            raise SecAggError("the peers of this sum are not agreed, or it has had its upload.")

    def masked(self, state: State, metrics: Metrics, dtype: torch.dtype | None) -> dict[str, Any]:
        """A reply's fields: the upload under its masks, and what of its metrics may be seen.

        `dtype` is the one in which the global tensors travelled here.
        """
        session = self._load(self.purpose)
        received = None
        if self.request.arrays is not None:
            received = unpack(self.request.arrays, manifest(state, dtype))
        examples = int(metrics["num-examples"])
        given, weight = self.settings.contribution(state, received, examples, session.threshold)
        loss = float(metrics.get("loss", 0.0)) if self.settings.tells_loss else 0.0
        values = vector_of(given, loss)
        vector = self.settings.encoding(len(session.members)).encode(values, weight)
        masked = session.protect(self.request.extra.get("mailbox", {}), vector)
        self._save(self.purpose, session)
        return {
            "arrays": ArrayRecord({MASKED: Array(masked)}),
            "metrics": unmasked(metrics),
            "extra": {"manifest": text_hash(manifest(state))},
        }

    def _announce(self, purpose: str) -> dict[str, Any]:
        if self._path(purpose, "revealed").exists() and not self.site.secagg_repeat:
            raise SecAggError(
                f"this client has already helped to unmask round {self.request.round}: a second "
                "sum could be set against the first. If an interrupted run is to repeat it, allow "
                "that by --node-config 'secagg-repeat=1'."
            )
        signer = self._signer() if self.site.secagg_key else None
        for finished in self.folder.glob("*.json"):  # of sums that went on without this client
            finished.unlink()
        name = session_name(self.request.run, self.request.round, purpose)
        session, announcement = ClientSession.announce(name, self.request.client, signer)
        self._save(purpose, session)
        return asdict(announcement)

    def _signer(self) -> Signer:
        if not self.site.secagg_key:
            raise SecAggError("this site has no key to sign with (secagg-key).")
        return Signer.load(Path(self.site.secagg_key))

    def _trusted(self) -> Trusted | None:
        peers = self.site.secagg_peers
        return Trusted.load(Path(peers)) if peers else None

    def _load(self, purpose: str) -> ClientSession:
        path = self._path(purpose, "json")
        if not path.exists():
            raise SecAggError(
                f"this client holds no keys for the sum '{purpose}' of round {self.request.round}: "
                "it sends nothing unmasked."
            )
        return ClientSession.from_json(path.read_text(encoding="utf-8"))

    def _save(self, purpose: str, session: ClientSession) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(purpose, "json")
        part = path.with_suffix(f".{os.getpid()}")
        part.touch(mode=0o600)
        part.write_text(session.to_json(), encoding="utf-8")
        os.replace(part, path)

    def _path(self, purpose: str, suffix: str) -> Path:
        return self.folder / f"{self.request.round}-{purpose}.{suffix}"


def unmasked(metrics: Metrics) -> Metrics:
    """What of a client's metrics travels in clear: nothing that its number of rows follows from.

    ε does depend on it, and is therefore rounded up to a tenth; δ, σ and the numbers of steps and
    tokens stay here.
    """
    clear = {"seconds": metrics["seconds"]} if "seconds" in metrics else {}
    if "epsilon" in metrics:
        clear["epsilon"] = math.ceil(10 * metrics["epsilon"]) / 10
    return clear


def upload_purpose(kind: str, request: Request) -> str:
    """Which sum an answer to this message goes into, whatever the message says."""
    if kind == TRAIN:
        return TRAINED
    assert kind == SKETCH
    return CORE if request.pieces else RANGE
