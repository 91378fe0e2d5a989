"""What server and clients say to each other: the only module both apps share.

A request names the client it is for, the round, and the *pieces* a participant must hold: tensors
addressed by the hash of their content (LoRA-SB's frozen factors, FedEx-LoRA's residuals, and the
configuration itself). A piece travels once per client; a client that lost one answers which, and
is sent it again. What trains travels every round, packed (see packing.py).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

import fedtuners
from strategies.packing import payload_bytes

PROTOCOL = "fedtuners/1"
DIGEST = 16  # hexadecimal digits of a content hash
HELLO, SKETCH, TRAIN = "query.hello", "query.sketch", "train"
OK, MISSING, FAILED = "ok", "missing", "failed"

Metrics = dict[str, Any]  # numbers, or lists of them, as Flower's MetricRecord takes


class ForeignMessageError(ValueError):
    """A message that was not written by this application, or by another build of it."""


@dataclass
class Request:
    """From the server to one client."""

    run: str
    client: int  # which part of the data, or which site, is asked
    clients: int  # of how many
    round: int = 0
    pieces: list[str] = field(default_factory=list)  # content hashes, in the order they apply
    config: str = ""  # content hash of the resolved configuration
    attached: dict[str, "Piece"] = field(default_factory=dict)  # the pieces sent along, by hash
    arrays: ArrayRecord | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def content(self) -> RecordDict:
        """The request as Flower records."""
        record = RecordDict({"request": ConfigRecord(self._fields())})
        if self.arrays is not None:
            record["arrays"] = self.arrays
        for digest, piece in self.attached.items():
            attach(record, digest, piece)
        return record

    def _fields(self) -> dict[str, Any]:
        return {
            "from": signature(),
            "run": self.run,
            "client": self.client,
            "clients": self.clients,
            "round": self.round,
            "pieces": " ".join(self.pieces),
            "config": self.config,
            "extra": json.dumps(self.extra),
        }


@dataclass
class Piece:
    """What a participant needs once: packed tensors and their manifest, or a text alone."""

    text: str
    arrays: ArrayRecord | None = None


def attach(content: RecordDict, digest: str, piece: Piece) -> None:
    """Put a piece into a message."""
    content[f"piece.{digest}"] = ConfigRecord({"text": piece.text})
    if piece.arrays is not None:
        content[f"arrays.{digest}"] = piece.arrays


@dataclass
class Reply:
    """From one client to the server."""

    client: int
    round: int
    status: str = OK
    missing: list[str] = field(default_factory=list)  # hashes the client does not hold
    error: str = ""  # one sentence without any of the client's data
    arrays: ArrayRecord | None = None
    metrics: Metrics = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def content(self) -> RecordDict:
        """The reply as Flower records."""
        fields: dict[str, Any] = {
            "from": signature(),
            "client": self.client,
            "round": self.round,
            "status": self.status,
            "missing": " ".join(self.missing),
            "error": self.error,
            "extra": json.dumps(self.extra),
        }
        record = RecordDict({"reply": ConfigRecord(fields), "metrics": MetricRecord(self.metrics)})
        if self.arrays is not None:
            record["arrays"] = self.arrays
        return record


def read_request(content: RecordDict) -> Request:
    """The request in a message; ForeignMessageError when another application wrote it."""
    fields = _fields(content, "request")
    digests = [name.removeprefix("piece.") for name in content if name.startswith("piece.")]
    return Request(
        run=str(fields["run"]),
        client=int(fields["client"]),
        clients=int(fields["clients"]),
        round=int(fields["round"]),
        pieces=str(fields["pieces"]).split(),
        config=str(fields["config"]),
        attached={
            digest: Piece(
                str(content.config_records[f"piece.{digest}"]["text"]),
                content.array_records.get(f"arrays.{digest}"),
            )
            for digest in digests
        },
        arrays=content.array_records.get("arrays"),
        extra=json.loads(str(fields["extra"])),
    )


def read_reply(content: RecordDict) -> Reply:
    """The reply in a message; ForeignMessageError when another application wrote it."""
    fields = _fields(content, "reply")
    try:
        return Reply(
            client=int(fields["client"]),
            round=int(fields["round"]),
            status=str(fields["status"]),
            missing=str(fields["missing"]).split(),
            error=str(fields["error"]),
            arrays=content.array_records.get("arrays"),
            metrics=dict(content.metric_records["metrics"].items()),
            extra=dict(json.loads(str(fields["extra"]))),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ForeignMessageError(f"its reply cannot be read ({error!r})") from error


def _fields(content: RecordDict, name: str) -> Mapping[str, Any]:
    record = content.config_records.get(name)
    if record is None or "from" not in record:
        raise ForeignMessageError(
            "this message is not from fedtuners: two projects with a folder client_app/ share one "
            "local SuperLink; give each its own FLWR_HOME and ports (docs/troubleshooting.md)"
        )
    if record["from"] != signature():
        raise ForeignMessageError(
            f"the other side runs '{record['from']!s}' and this side '{signature()}': install the "
            "same version of fedtuners and start the run again"
        )
    return record


def text_hash(text: str) -> str:
    """The content hash of a text piece."""
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST]


def content_bytes(content: RecordDict) -> int:
    """Bytes of a message's records as they are sent: array buffers, settings and metrics."""
    return sum(record_bytes(record) for record in content.values())


def record_bytes(record: ArrayRecord | ConfigRecord | MetricRecord) -> int:
    """Bytes of one record: its arrays' buffers, or its serialised fields."""
    return payload_bytes(record) if isinstance(record, ArrayRecord) else len(record.deflate())


def signature() -> str:
    """Protocol, library version and a digest of the app's code: equal on both sides or refused."""
    return f"{PROTOCOL} {fedtuners.__version__} {_build()}"


@cache
def _build() -> str:
    """A digest of the app's sources beside this file, taken once per process."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for source in sorted(
        path for app in ("client_app", "strategies") for path in (root / app).glob("*.py")
    ):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:12]
