"""What is sent is what is read, foreign records are refused, and bytes are those on the wire."""

from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from local_grid import LocalGrid

from strategies import messages
from strategies.messages import (
    MISSING,
    TRAIN,
    ForeignMessageError,
    Piece,
    Reply,
    Request,
    content_bytes,
    read_reply,
    read_request,
    text_hash,
)
from strategies.packing import manifest, pack


def state(numbers: int = 6) -> dict[str, torch.Tensor]:
    return {"x.lora_A": torch.arange(numbers, dtype=torch.float32).view(2, -1)}


def request() -> Request:
    return Request(
        run="run",
        client=2,
        clients=5,
        round=3,
        pieces=["ab", "cd"],
        config="ef",
        attached={"ab": Piece(manifest(state()), pack(state())), "ef": Piece("{}")},
        arrays=pack(state()),
        extra={"width": 7},
    )


def reply() -> Reply:
    return Reply(
        *(1, 4, MISSING, ["ab"], "a sentence", pack(state())),
        metrics={"loss": 0.5, "num-examples": 9},
        extra={"name": "ward 3"},
    )


def test_a_request_is_read_as_it_was_written() -> None:
    written = request()

    read = read_request(written.content())

    assert (read.run, read.client, read.clients, read.round) == ("run", 2, 5, 3)
    assert (read.pieces, read.config, read.extra) == (["ab", "cd"], "ef", {"width": 7})
    assert read.attached["ef"] == Piece("{}")
    assert read.attached["ab"].text == manifest(state())
    assert read.arrays is not None
    assert read.arrays.object_id == pack(state()).object_id


def test_a_reply_is_read_as_it_was_written() -> None:
    read = read_reply(reply().content())

    assert (read.client, read.round, read.status, read.missing) == (1, 4, MISSING, ["ab"])
    assert (read.error, read.extra) == ("a sentence", {"name": "ward 3"})
    assert read.metrics == {"loss": 0.5, "num-examples": 9}


FOREIGN = [
    RecordDict(),
    RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord({"lr": 0.1})}),
    RecordDict({"request": ConfigRecord({"client": 1}), "reply": ConfigRecord({"client": 1})}),
]


@pytest.mark.parametrize("content", FOREIGN, ids=["empty", "another project's", "unsigned"])
def test_records_of_another_project_are_refused(content: RecordDict) -> None:
    for read in (read_request, read_reply):
        with pytest.raises(ForeignMessageError, match="not from fedtuners"):
            read(content)


def test_another_build_is_refused_with_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = request().content(), reply().content()
    monkeypatch.setattr(messages, "_build", lambda: "another")

    for read, content in zip((read_request, read_reply), there, strict=True):
        with pytest.raises(ForeignMessageError, match=r"runs 'fedtuners/1 .*' and .* another'"):
            read(content)


@pytest.mark.parametrize(
    ("field", "value"),
    [("client", "seven"), ("round", "?"), ("extra", "{"), ("extra", "[1]"), ("extra", "3")],
)
def test_a_reply_that_cannot_be_read_is_refused(field: str, value: Any) -> None:
    content = reply().content()
    content.config_records["reply"][field] = value

    with pytest.raises(ForeignMessageError, match="cannot be read"):
        read_reply(content)


@pytest.mark.parametrize("gone", ["client", "status", "extra", "metrics"])
def test_a_reply_without_a_field_is_refused(gone: str) -> None:
    content = reply().content()
    if gone == "metrics":
        del content["metrics"]
    else:
        del content.config_records["reply"][gone]

    with pytest.raises(ForeignMessageError, match="cannot be read"):
        read_reply(content)


@pytest.mark.parametrize("numbers", [40, 40_000, 400_000])
def test_bytes_are_those_that_flower_sends(numbers: int) -> None:
    LocalGrid()  # gives this process the identity that messages need
    asked = Request(run="run", client=0, clients=1, arrays=pack(state(numbers)))
    message = Message(asked.content(), 1, TRAIN)

    counted = content_bytes(message.content)

    sent = sum(len(part.deflate()) for part in get_all_nested_objects(message).values())
    assert counted <= sent <= counted + 2000  # Flower's own headers, hashes and addresses
    if 4 * numbers > 100_000:
        assert 4 * numbers < counted < 1.01 * 4 * numbers


def test_metrics_and_settings_are_counted() -> None:
    bare = RecordDict({"m": MetricRecord({})})
    full = RecordDict({"m": MetricRecord({"loss": [1.0] * 100})})

    assert content_bytes(full) >= content_bytes(bare) + 800


def test_a_text_hash_tells_texts_apart() -> None:
    assert text_hash("a") == text_hash("a") != text_hash("b")
    assert len(text_hash("a")) == messages.DIGEST
