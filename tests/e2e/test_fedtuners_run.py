"""`fedtuners run` from end to end through Flower and Ray: its table, its exit codes, its code.

The SuperLink is started in another project's folder, whose `client_app/` Ray's workers would find
first: that it is not run is part of every test here.
"""

import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
Command = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    *("federation.rounds=2", "federation.clients=3", "train.steps=2", "data.train_rows=300"),
    *("data.test_rows=8", "data.max_new_tokens=8", "start.rows=16", "adapter.rank=8"),
)


def test_a_run_runs_our_code_and_ends_with_its_table(fedtuners: Command, elsewhere: Path) -> None:
    project = (ROOT / "pyproject.toml").read_bytes()

    finished = fedtuners("run", *SMALL)

    output = finished.stdout + finished.stderr
    assert finished.returncode == 0, output[-3000:]
    table = finished.stdout[finished.stdout.rindex("round") - 200 :]
    for part in ("exact_match", "before", "bytes:", "seconds:", "run folder:"):
        assert part in finished.stdout, table
    folder = Path(re.findall(r"run folder: (/\S+)", finished.stdout)[-1])
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["strategy"], summary["rounds"], summary["clients"]) == ("fed_sb", 2, 3)
    assert not list(elsewhere.rglob("IMPORTED"))  # another project's code lay in the way
    loaded = Counter(re.findall(r"loaded base model \S+ in process (\d+)", output))
    asked = summary["clients"] * summary["rounds"]
    assert 2 <= len(loaded) < asked  # the server's process, and the workers'
    assert set(loaded.values()) == {1}
    assert (ROOT / "pyproject.toml").read_bytes() == project


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["adapter=lora"], "choose adapter=lora_sb, or strategy=ffa_lora"),
        (["strategy=fedsb"], "strategy has no choice 'fedsb'; choose from fed_sb, fedavg_lora"),
    ],
    ids=["mismatch", "mistyped"],
)
def test_a_run_that_cannot_start_says_why_and_exits_with_two(
    fedtuners: Command, words: list[str], sentence: str
) -> None:
    finished = fedtuners("run", *words)

    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert sentence in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert not finished.stdout
