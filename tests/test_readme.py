"""Every command of README.md, run: the overrides word for word, at a size of seconds."""

import io
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from local_grid import LocalGrid

from fedtuners.cli.main import main
from fedtuners.config import compose
from server_app.run import run

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    *("federation.rounds=1", "federation.clients=2", "train.steps=1", "train.batch_size=4"),
    *("start.rows=4", "data.test_rows=4", "data.train_rows=200"),
    *("data.max_new_tokens=4", "data.max_length=64"),
]
# What needs the network or a file of the reader's stands for these, which are at hand.
AT_HAND = {"model=HuggingFaceTB/SmolLM2-135M": "model=demo"}


def commands() -> list[str]:
    """The lines of README's bash blocks, without comments."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def small(overrides: list[str], folder: Path) -> list[str]:
    """The overrides with what is at hand, and small; what the command itself sets small stays."""
    rows = [{"instruction": f"say {n}", "output": f"said {n}"} for n in range(40)]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own = [AT_HAND.get(word, word).replace("data=rows.jsonl", f"data={file}") for word in overrides]
    return [*own, *SMALL]


@pytest.mark.parametrize("command", [c for c in commands() if " run" in c])
def test_runs(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    if words[0] == "flwr":
        words = shlex.split(words[-1].partition("=")[2].strip('"'))
    else:
        assert words[:2] in (["fedtuners", "run"], ["make", "run"])
        words = words[2:]
    if words and words[0].startswith("ARGS="):
        words = shlex.split(words[0].removeprefix("ARGS="))

    config = compose(small(words, tmp_path), ROOT / "conf")
    summary = run(config, LocalGrid(2), "readme")

    assert summary["rounds"] == 1
    assert (tmp_path / "outputs" / "latest" / "lora" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make")])
def test_make_knows_its_targets(command: str) -> None:
    words = shlex.split(command)

    planned = subprocess.run(
        ["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True
    )

    assert planned.returncode == 0, planned.stderr


@pytest.fixture(scope="module")
def latest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs folder of one small run of the main job."""
    outputs = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FEDTUNERS_STATE", str(outputs / "state"))
        run(compose([*SMALL, f"outputs={outputs}"], ROOT / "conf"), LocalGrid(2), "readme")
    return outputs


@pytest.mark.parametrize("command", [c for c in commands() if " latest" in c])
def test_verbs_after_a_run(
    command: str,
    latest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FEDTUNERS_OUTPUTS", str(latest))
    monkeypatch.setattr("sys.stdin", io.StringIO("say 3\n"))
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(command)[1:])

    assert not stopped.value.code, capsys.readouterr().err


def test_no_command_is_left_out() -> None:
    tested = [c for c in commands() if " run" in c or c.startswith("make") or " latest" in c]

    assert commands() == tested
