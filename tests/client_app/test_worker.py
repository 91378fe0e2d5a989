"""A site's warm worker: one a node, across the deaths of those that ask it, and its own."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from federation import Federation
from flwr.app import ConfigRecord, Context, Message, RecordDict
from local_grid import LocalGrid

from client_app import handlers, worker
from fedtuners.config import to_json
from strategies.messages import HELLO, Piece, Reply, Request, read_reply, text_hash

# Handlers that say in which process they are, and do what they are told.
STAND_IN = """
import logging, os, time
from flwr.app import ConfigRecord, Message, RecordDict
def answer(message, context):
    told = message.content["request"]
    logging.getLogger("flwr").warning("told to %s", told["do"])
    if told["do"] == "die":
        os._exit(1)
    if told["do"] == "sleep":
        open(told["mark"], "w").close()
        time.sleep(1)
    return Message(RecordDict({"reply": ConfigRecord({"process": os.getpid()})}), reply_to=message)
"""
CALLER = """
import pickle, sys
from client_app import worker
message, context = pickle.load(open(sys.argv[1], "rb"))
worker.answer(message, context)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str | float]]:
    """A site with a worker whose handlers are the stand-in; its processes end with the test."""
    root = Path(worker.__file__).parent
    bundle = tmp_path / "bundle" / "client_app"
    bundle.mkdir(parents=True)
    for name in ("__init__.py", "worker.py", "site.py"):
        shutil.copy(root / name, bundle)
    (bundle / "handlers.py").write_text(STAND_IN)
    monkeypatch.setattr(worker, "BUNDLE", bundle.parent)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    LocalGrid()
    yield {"state": str(tmp_path / "state"), "worker": 60.0}
    for process in workers(tmp_path):
        os.kill(process, signal.SIGKILL)


def workers(folder: Path) -> list[int]:
    """The living workers of a test's folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"client_app.worker" in words and str(folder).encode() in words[4]:
            found.append(int(process.name))
    return found


def asked(do: str, mark: Path | str = "") -> Message:
    content = RecordDict({"request": ConfigRecord({"do": do, "mark": str(mark)})})
    message = Message(content, 1, HELLO)
    message.metadata.__dict__["_message_id"] = "1"
    return message


def context(site: dict[str, str | float]) -> Context:
    return Context(1, 1, site, RecordDict(), {})


def process_of(site: dict[str, str | float], do: str = "answer") -> int:
    reply = worker.answer(asked(do), context(site))
    return int(reply.content["reply"]["process"])


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_one_process_answers_all_messages(site: dict[str, str | float], tmp_path: Path) -> None:
    processes = {process_of(site) for _ in range(3)}

    assert processes == set(workers(tmp_path))
    assert os.getpid() not in processes
    assert len(processes) == 1


def test_what_it_logs_is_in_the_callers_log(
    site: dict[str, str | float], caplog: pytest.LogCaptureFixture
) -> None:
    worker.log.addHandler(caplog.handler)
    process_of(site)
    worker.log.removeHandler(caplog.handler)

    assert "told to answer" in caplog.text


def test_callers_at_the_same_time_start_one(site: dict[str, str | float], tmp_path: Path) -> None:
    found: list[int] = []
    callers = [threading.Thread(target=lambda: found.append(process_of(site))) for _ in range(4)]

    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

    assert len(found) == 4
    assert len(set(found)) == len(workers(tmp_path)) == 1


def test_a_caller_that_is_killed_does_not_end_it(
    site: dict[str, str | float], tmp_path: Path
) -> None:
    # Prepare: a caller that waits for an answer.
    first = process_of(site)
    request = tmp_path / "request"
    request.write_bytes(pickle.dumps((asked("sleep", tmp_path / "begun"), context(site))))
    caller = subprocess.Popen(
        [sys.executable, "-P", "-c", CALLER, request],
        env=os.environ | {"PYTHONPATH": str(worker.BUNDLE)},
    )
    until((tmp_path / "begun").exists)

    # Execute
    caller.kill()
    caller.wait()

    # Assert
    assert process_of(site) == first


def test_other_settings_replace_it(site: dict[str, str | float], tmp_path: Path) -> None:
    first = process_of(site)

    second = process_of(site | {"device": "cpu"})

    assert second != first
    assert workers(tmp_path) == [second]


def test_it_ends_when_idle(site: dict[str, str | float], tmp_path: Path) -> None:
    first = process_of(site | {"worker": 0.3})

    until(lambda: not workers(tmp_path))

    assert process_of(site | {"worker": 0.3}) != first


def test_its_death_is_told_and_the_next_message_starts_another(
    site: dict[str, str | float], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = process_of(site)
    said = []
    monkeypatch.setattr(handlers, "refused", lambda message, error: said.append(str(error)))

    worker.answer(asked("die"), context(site))

    assert "died while it answered" in said[0]
    assert process_of(site) != first


def test_a_worker_killed_between_messages_leaves_no_trace(site: dict[str, str | float]) -> None:
    first = process_of(site)
    os.kill(first, signal.SIGKILL)

    assert process_of(site) != first


def test_two_sites_have_one_each(site: dict[str, str | float], tmp_path: Path) -> None:
    processes = {process_of(site | {"name": name}) for name in ("a", "b", "a", "b")}

    assert len(processes) == 2
    assert processes == set(workers(tmp_path))


def test_nobody_else_can_reach_its_socket(site: dict[str, str | float], tmp_path: Path) -> None:
    process_of(site)
    folder = tmp_path / f"fedtuners-{os.getuid()}"

    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    with pytest.raises(worker.SiteError, match="must belong to this user alone"):
        worker.Address.of(worker.read_site(context(site)))


def test_it_answers_as_without(
    federation: Callable[..., Federation],
    settings: Callable[..., object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real handlers: the same reply, by a process that is not this one."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = to_json(settings())  # type: ignore[arg-type]
    request = Request("run", 0, 3, config=text_hash(config))
    request.attached = {request.config: Piece(config)}
    LocalGrid()
    message = Message(request.content(), 1, HELLO)
    message.metadata.__dict__["_message_id"] = "1"

    def replied(node: dict[str, str | float]) -> Reply:
        return read_reply(worker.answer(message, context(node)).content)

    kept = {"worker": 60.0, "state": str(tmp_path / "state")}
    assert replied(kept) == replied({"state": str(tmp_path / "state")})
    (process,) = workers(tmp_path)
    os.kill(process, signal.SIGKILL)
