"""A client's answers: what may leave it, what it asks for again, and its own data."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from federation import Federation
from flwr.app import ConfigRecord, Context, Message, RecordDict
from local_grid import LocalGrid

from client_app import handlers
from client_app.site import SiteError
from fedtuners.config import to_json
from fedtuners.tasks import DataError, PartitionError
from server_app.clients import meet
from strategies.base import AdapterStrategy
from strategies.messages import (
    HELLO,
    TRAIN,
    Piece,
    Reply,
    Request,
    read_reply,
    read_request,
    text_hash,
)

Made = Callable[..., Federation]
SECRET = "patient 4711 has measles"


def hello(config: Any, pieces: list[str] | None = None, **node: Any) -> Reply:
    """The answer to a hello that carries this configuration."""
    LocalGrid()
    text = to_json(config)
    request = Request("run", 0, 3, config=text_hash(text), pieces=pieces or [])
    request.attached = {request.config: Piece(text)}
    return ask(request, HELLO, **node)


def ask(request: Request, kind: str, **node: Any) -> Reply:
    message = Message(request.content(), 1, kind)
    message.metadata.__dict__["_message_id"] = "1"
    settings = {key.replace("_", "-"): value for key, value in node.items()}
    return read_reply(handlers.answer(message, Context(1, 1, settings, RecordDict(), {})).content)


# --- what may leave ----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError, OSError, AssertionError])
def test_the_text_of_an_error_stays(
    settings: Any, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def failing(*args: Any) -> None:
        raise error(SECRET)

    monkeypatch.setattr(handlers, "load", failing)

    reply = hello(settings())

    assert reply.status == "failed"
    assert SECRET not in reply.error
    assert not re.search("patient|4711|measles", json.dumps(reply.__dict__, default=str))
    assert re.fullmatch(
        rf"{error.__name__} at test_handlers.py:\d+; its text stays in this site's log", reply.error
    )


def test_an_error_of_an_error_stays_too(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any) -> None:
        try:
            raise ValueError(SECRET)
        except ValueError as cause:
            raise RuntimeError(f"while reading: {cause}") from cause

    monkeypatch.setattr(handlers, "load", failing)

    assert "patient" not in hello(settings()).error


@pytest.mark.parametrize("kind", [SiteError, DataError, PartitionError])
def test_our_own_sentences_are_told(kind: type[Exception]) -> None:
    assert handlers.speakable(kind("rows.csv holds no rows")) == "rows.csv holds no rows"


def test_a_broken_row_is_named_by_its_line_alone(settings: Any, tmp_path: Path) -> None:
    rows = tmp_path / "own.jsonl"
    rows.write_text(f'{{"instruction": "a", "output": "b"}}\n{{"instruction": {SECRET}\n')

    reply = hello(settings(), data=str(rows))

    assert reply.error == f"{rows}, line 2: not valid JSON"


def test_an_unknown_setting_of_the_site_is_told(settings: Any) -> None:
    reply = hello(settings(), dvice="cpu")

    assert "node-config has no key 'dvice'" in reply.error


# --- foreign messages --------------------------------------------------------------------------


def test_another_projects_message_gets_a_sentence() -> None:
    LocalGrid()
    message = Message(RecordDict({"config": ConfigRecord({"lr": 0.1})}), 1, TRAIN)

    reply = read_reply(handlers.answer(message, Context(1, 1, {}, RecordDict(), {})).content)

    assert reply.status == "failed"
    assert reply.error.startswith("this message is not from fedtuners: two projects")


def test_another_builds_message_gets_a_sentence(settings: Any) -> None:
    LocalGrid()
    content = Request("run", 0, 3).content()
    content.config_records["request"]["from"] = "fedtuners/1 0.0.1 older"
    message = Message(content, 1, TRAIN)

    reply = read_reply(handlers.answer(message, Context(1, 1, {}, RecordDict(), {})).content)

    assert "install the same version" in reply.error


def test_a_configuration_cannot_call_what_is_not_ours(settings: Any) -> None:
    config = settings()
    config.adapter = {"_target_": "os.system", "command": "true"}

    assert "is not an adapter of fedtuners.adapters" in hello_and_train(config).error


def test_a_nested_target_is_not_called(settings: Any, tmp_path: Path) -> None:
    config, mark = settings(), tmp_path / "called"
    config.adapter["targets"] = {"_target_": "pathlib.Path.touch", "self": str(mark)}

    reply = hello_and_train(config)

    assert reply.status == "failed"
    assert not mark.exists()


def hello_and_train(config: Any) -> Reply:
    hello(config)
    request = Request("run", 0, 3, round=1, config=text_hash(to_json(config)))
    return ask(request, TRAIN)


def test_tensors_of_another_model_are_refused(settings: Any) -> None:
    reply = _asked_to_train(settings())

    assert "other names, shapes or types than this site's model gives" in reply.error


def _asked_to_train(config: Any) -> Reply:
    from strategies.packing import pack

    hello(config)
    request = Request("run", 0, 3, round=1, config=text_hash(to_json(config)))
    request.arrays = pack({"x.lora_sb_R": torch.zeros(2)})
    request.extra = {"manifest": "0" * 16}
    return ask(request, TRAIN)


# --- pieces ------------------------------------------------------------------------------------


def test_what_is_not_held_is_asked_for(settings: Any) -> None:
    reply = hello(settings(), pieces=["ab" * 8])

    assert (reply.status, reply.missing) == ("missing", ["ab" * 8])


def test_a_lost_configuration_is_asked_for(settings: Any) -> None:
    digest = text_hash(to_json(settings()))
    LocalGrid()

    reply = ask(Request("another run", 0, 3, config=digest), HELLO)

    assert (reply.status, reply.missing) == ("missing", [digest])


def damaged(state: Path, how: str) -> int:
    """Cut or remove every piece on the clients' disks; returns how many there were."""
    pieces = [path for path in state.rglob("*") if path.suffix in (".safetensors", ".json")]
    for path in pieces:
        if how == "removed":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-3] + b"\xff\xff\xff")
    return len(pieces)


@pytest.mark.parametrize("how", ["removed", "damaged"])
@pytest.mark.parametrize(("method", "adapter"), [("fed_sb", "lora_sb"), ("fedex_lora", "lora")])
def test_a_client_that_lost_its_pieces_ends_with_the_same_bits(
    federation: Made, tmp_path: Path, how: str, method: str, adapter: str
) -> None:
    choice = (f"strategy={method}", f"adapter={adapter}")
    undisturbed = federation(*choice)
    undisturbed.rounds(3)

    made = federation(*choice)
    harmed: list[int] = []
    made.strategy.observers.append(
        lambda report: (
            harmed.append(damaged(tmp_path / "state", how)) if report.round == 2 else None
        )
    )
    made.rounds(3)

    assert harmed[0] >= 3
    assert all(not report.problems for report in made.reports)
    asked_again = sum(read_reply(m.content).status == "missing" for m in made.grid.replies)
    assert asked_again >= 3
    assert same(made.strategy, undisturbed.strategy)


def same(first: AdapterStrategy, second: AdapterStrategy) -> bool:
    return list(first.shared) == list(second.shared) and all(
        torch.equal(first.state[name], value) for name, value in second.state.items()
    )


def test_a_runs_name_is_no_path(settings: Any, tmp_path: Path) -> None:
    LocalGrid()
    text = to_json(settings())
    request = Request("../../../escape", 0, 3, config=text_hash(text))
    request.attached = {request.config: Piece(text)}

    reply = ask(request, HELLO)

    assert reply.status == "ok"
    written = [path for path in tmp_path.rglob("*.json") if path.parent.name == "client-0"]
    assert written
    assert all((tmp_path / "state") in path.parents for path in written)


# --- data of one's own -------------------------------------------------------------------------


def own_rows(folder: Path, count: int) -> str:
    path = folder / f"own-{count}.jsonl"
    line = json.dumps({"instruction": "w1", "output": "w2"})
    path.write_text(f"{line}\n" * count)
    return str(path)


def test_sites_with_data_are_a_client_each_and_train_on_all_of_it(
    federation: Made, tmp_path: Path
) -> None:
    nodes = {
        1: {"name": "west", "data": own_rows(tmp_path, 11)},
        2: {"name": "east", "data": own_rows(tmp_path, 7)},
        3: {"partition-id": 2},
    }

    made = federation("strategy=fed_sb", "federation.clients=9", grid=LocalGrid(3, nodes))
    made.rounds(1)

    assert made.exchange.nodes == {0: 2, 1: 1}  # by name; the third has no rows of its own
    assert {u.client: u.examples for u in made.reports[1].updates} == {0: 7, 1: 11}


def test_a_site_with_one_row_can_train(federation: Made, tmp_path: Path) -> None:
    nodes = {n: {"name": f"s{n}", "data": own_rows(tmp_path, n)} for n in (1, 2)}

    made = federation("strategy=fedavg_lora", "adapter=lora", grid=LocalGrid(2, nodes))
    made.rounds(1)

    assert {u.client: u.examples for u in made.reports[1].updates} == {0: 1, 1: 2}


def test_no_row_leaves_a_site(federation: Made, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"instruction": SECRET, "output": SECRET}) + "\n")
    nodes = {n: {"name": f"s{n}", "data": str(path)} for n in (1, 2)}

    made = federation("strategy=fed_sb", grid=LocalGrid(2, nodes))
    made.rounds(1)

    for message in made.grid.replies:
        text = str({name: str(record) for name, record in message.content.items()})
        assert "patient" not in text
        assert "measles" not in text


def test_hello_counts_only_a_sites_own_rows(settings: Any, tmp_path: Path) -> None:
    own = hello(settings(), data=own_rows(tmp_path, 5), name="west")
    part = hello(settings(), partition_id=1)

    assert (own.extra["own_data"], own.extra["examples"], own.extra["name"]) == (True, 5, "west")
    assert (part.extra["own_data"], part.extra["examples"]) == (False, 0)


# --- one model per process ---------------------------------------------------------------------


def test_the_base_model_is_loaded_once_for_all_clients_and_rounds(
    settings: Any, federation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    original = handlers.TunedModel

    def counted(config: Any, linear_only: bool) -> Any:
        loaded.append(config.model.name)
        return original(config, linear_only)

    handlers._loaded.clear()
    monkeypatch.setattr(handlers, "TunedModel", counted)

    made = federation("strategy=fed_sb")
    made.rounds(2)

    trained = [m for m in made.grid.sent if read_request(m.content).round]
    assert len(trained) == 6
    assert len(loaded) == 1


def test_meeting_sends_the_configuration_once(settings: Any) -> None:
    config = settings()
    grid = LocalGrid(3)

    exchange = meet(grid, "run", config, to_json(config))

    assert len(grid.sent) == 3
    assert all(read_request(m.content).attached for m in grid.sent)
    assert exchange.traffic.down.keys() == {0}
