"""The ClientApp travels by value, and answers by the code of its own bundle or not at all."""

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from local_grid import LocalGrid
from ray import cloudpickle

from client_app import app as module
from strategies.messages import HELLO, read_reply

ROOT = Path(__file__).resolve().parents[2]


FOREIGN = """
import pickle, sys
answer = pickle.loads(open(sys.argv[1], "rb").read())
try:
    answer(None, None)
except Exception as error:
    print(type(error).__name__, error)
print("from", sys.modules["client_app.worker"].__file__)
"""


def test_another_projects_package_in_the_way_is_not_imported(tmp_path: Path) -> None:
    """A worker that looks in another project's folder first, as Ray's do."""
    (tmp_path / "client_app").mkdir()
    (tmp_path / "client_app" / "__init__.py").write_text("")
    (tmp_path / "client_app" / "worker.py").write_text("raise SystemExit('wrong code')")
    (tmp_path / "foreign.py").write_text(FOREIGN)
    pickled = tmp_path / "answer"
    pickled.write_bytes(cloudpickle.dumps(module._answer(str(ROOT))))

    finished = subprocess.run(
        [sys.executable, "foreign.py", str(pickled)], cwd=tmp_path, capture_output=True, text=True
    )

    assert f"from {ROOT}/client_app/worker.py" in finished.stdout, finished.stderr


def test_a_worker_that_already_has_another_client_app_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "worker.py"
    other.write_text("def answer(message, context): return 'wrong code'")
    foreign = importlib.util.module_from_spec(
        importlib.util.spec_from_file_location("client_app.worker", other)
    )
    foreign.__spec__.loader.exec_module(foreign)
    monkeypatch.setitem(sys.modules, "client_app.worker", foreign)

    with pytest.raises(ImportError, match=r"client_app was imported from .*, not"):
        module._answer(str(ROOT))(None, None)


def test_it_answers_like_the_handlers() -> None:
    LocalGrid()
    message = Message(RecordDict(), 1, HELLO)
    answer = pickle.loads(cloudpickle.dumps(module._answer(str(ROOT))))

    reply = answer(message, Context(1, 1, {}, RecordDict(), {}))

    assert "not from fedtuners" in read_reply(reply.content).error
