"""A run that is killed and resumed ends bit-equal to one that was never interrupted.

Run names have one length here: they are part of the bytes that are compared.
"""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from local_grid import LocalGrid
from safetensors.torch import load_file

from client_app import handlers
from fedtuners.config import ConfigError, compose
from server_app import checkpoint
from server_app.checkpoint import Checkpoint
from server_app.folder import FullDiskError, RunFolder
from server_app.resume import resumed
from server_app.run import run

CONF = Path("conf")
SMALL = [
    *("federation.rounds=3", "federation.clients=2", "federation.minimum_nodes=2"),
    *("train.steps=2", "train.batch_size=8", "start.rows=16", "evaluation.every=2"),
    *("data.train_rows=200", "data.test_rows=8", "data.max_new_tokens=4", "device=cpu"),
]
METHODS = {
    "Fed-SB": ["strategy=fed_sb", "adapter=lora_sb", "adapter.rank=4"],
    "FedEx-LoRA": ["strategy=fedex_lora", "adapter=lora", "adapter.rank=2"],
    "ABBA": ["strategy=fedex_lora", "adapter=abba", "adapter.rank1=2", "adapter.rank2=2"],
}


class Killed(BaseException):
    """Stands for kill -9: nobody catches it."""


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNERS_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("FEDTUNERS_STATE", str(tmp_path / "state"))


def go(overrides: list[str], outputs: Path, name: str, grid: LocalGrid | None = None) -> Path:
    """One process's share of a run; returns the run folder."""
    handlers._loaded.clear()  # a new process has loaded nothing
    words = [*overrides, f"outputs={outputs}"]
    config = compose(words, CONF)
    if config.resume is not None:
        config = resumed(config, words)
    run(config, grid or LocalGrid(2), name)
    return (outputs / "latest").resolve()


def dying(round_: int) -> LocalGrid:
    """A grid whose server dies while it waits for the answers of a round."""

    def script(request: Message, reply: Message) -> list[Message]:
        asked = request.content.config_records["request"]["round"]
        if request.metadata.message_type == "train" and asked == round_:
            raise Killed
        return [reply]

    return LocalGrid(2, script=script)


def deterministic(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the result, by file and name."""
    files = sorted([*folder.glob("adapter/*.safetensors"), *folder.glob("lora/*.safetensors")])
    return {f"{f.parent.name}/{f.name}/{k}": v for f in files for k, v in load_file(f).items()}


def assert_same(one: Path, other: Path) -> None:
    """Bit for bit the same tensors, and the same metrics."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert deterministic(one) == deterministic(other)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    for key in ("initial", "final", "by_round", "rounds", "clients"):
        assert summaries[0][key] == summaries[1][key]
    for key in ("up_per_client_round", "down_per_client_round"):
        assert summaries[0]["bytes"][key] == summaries[1]["bytes"][key]


@pytest.mark.parametrize("method", METHODS)
def test_killed_in_every_round_it_ends_bit_equal(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Prepare
    words = [*SMALL, *METHODS[method]]
    whole = go(words, tmp_path / "whole", "run-0")
    save = Checkpoint.save

    def die_before_saving(round_: int) -> Callable[[Checkpoint, Path], None]:
        def patched(self: Checkpoint, folder: Path) -> None:
            if self.completed == round_:
                raise Killed
            save(self, folder)

        return patched

    # Execute
    outputs = tmp_path / "killed"
    with pytest.raises(Killed):
        go(words, outputs, "run-1", dying(1))
    monkeypatch.setattr(Checkpoint, "save", die_before_saving(2))  # metrics are written already
    with pytest.raises(Killed):
        go(["resume=latest"], outputs, "run-2")
    monkeypatch.setattr(Checkpoint, "save", save)
    with pytest.raises(Killed):
        go(["resume=latest"], outputs, "run-3", dying(3))
    last = go(["resume=latest"], outputs, "run-4")

    # Assert
    assert len(list(outputs.glob("2*"))) == 1
    assert_same(whole, last)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The folder of a FedEx-LoRA run that died in its third round."""
    with pytest.raises(Killed):
        go([*SMALL, *METHODS["FedEx-LoRA"]], tmp_path / "outputs", "run-1", dying(3))
    return (tmp_path / "outputs" / "latest").resolve()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(stopped: Path, tmp_path: Path) -> None:
    # Prepare
    whole = go([*SMALL, *METHODS["FedEx-LoRA"]], tmp_path / "whole", "run-0")
    newest = stopped / "checkpoint" / "round-00002.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1  # one bit of one number
    newest.write_bytes(content)

    # Execute
    found = checkpoint.load(stopped / "checkpoint")
    last = go(["resume=latest"], stopped.parent, "run-2")

    # Assert
    assert found.completed == 1
    assert_same(whole, last)


@pytest.mark.parametrize("where", ["cut off", "header", "residual", "empty"])
def test_damage_anywhere_is_noticed(stopped: Path, where: str) -> None:
    folder = stopped / "checkpoint"
    newest = folder / "round-00002.safetensors"
    text = newest.read_bytes()
    if where == "cut off":
        newest.write_bytes(text[:-100])
    elif where == "empty":
        newest.write_bytes(b"")
    elif where == "header":
        newest.write_bytes(text.replace(b'\\"completed\\": 2', b'\\"completed\\": 7'))
        assert newest.read_bytes() != text
    else:
        second = list(checkpoint.load(folder).shared)[1]
        (folder / f"{second}.safetensors").unlink()
    assert checkpoint.load(folder).completed == 1


def test_no_checkpoint_left_is_said_in_a_sentence(stopped: Path) -> None:
    for path in (stopped / "checkpoint").glob("round-*"):
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="no usable checkpoint in"):
        checkpoint.load(stopped / "checkpoint")


def test_a_full_disk_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.save_file

    def full(state: Any, path: Path, header: dict[str, str]) -> None:
        if path.name.startswith("round-00002"):
            path.write_bytes(b"half a")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(state, path, header)

    whole = go([*SMALL, *METHODS["Fed-SB"]], tmp_path / "whole", "run-0")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        filled(tmp_path / "outputs")
    left = sorted(path.name for path in (tmp_path / "outputs/latest/checkpoint").glob("round-*"))
    last = go(["resume=latest"], tmp_path / "outputs", "run-2")

    assert left == ["round-00000.safetensors", "round-00001.safetensors"]
    assert_same(whole, last)


def test_a_disk_that_fills_between_checkpoints_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RunFolder.append_metrics

    def full(self: RunFolder, lines: list[dict[str, Any]]) -> None:
        if any(line["round"] == 2 for line in lines):
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, lines)

    whole = go([*SMALL, *METHODS["Fed-SB"]], tmp_path / "whole", "run-0")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_metrics", full)
        filled(tmp_path / "outputs")
    last = go(["resume=latest"], tmp_path / "outputs", "run-2")

    assert_same(whole, last)


def filled(outputs: Path) -> None:
    """A run whose disk fills on the way: one sentence that says how to go on."""
    with pytest.raises(FullDiskError, match=r"No space left.*make room.*resume=.*_fed_sb$"):
        go([*SMALL, *METHODS["Fed-SB"]], outputs, "run-1")


def test_another_error_of_the_system_is_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError), RunFolder(tmp_path).room():
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("strategy=fed_sb", r"strategy\._target_=strategies\.fedex_lora"),
        ("adapter.rank=16", r"adapter\.rank=2"),
        ("train.learning_rate=1", r"train\.learning_rate="),
        ("seed=1", "seed=0"),
        ("data.train_rows=100", r"data\.train_rows=200"),
    ],
)
def test_another_method_is_refused_with_the_key(stopped: Path, word: str, named: str) -> None:
    words = ["resume=latest", word, f"outputs={stopped.parent}"]
    if word.startswith("adapter."):
        words.insert(1, "adapter=lora")
        word = "adapter"
    with pytest.raises(ConfigError, match=rf"^{word.split('=')[0]}.*{named}"):
        resumed(compose(words, CONF), words)


def test_what_is_free_to_change_does(stopped: Path) -> None:
    words = ["resume=latest", f"outputs={stopped.parent}", "federation.rounds=9", "seed=0"]
    config = resumed(compose(words, CONF), words)
    assert (config.federation.rounds, config.adapter["rank"], config.train.steps) == (9, 2, 2)


def test_an_absent_site_keeps_its_number(tmp_path: Path) -> None:
    # Prepare: three sites with rows of their own, one of which is away when the run goes on.
    rows = [json.dumps({"instruction": f"say {i}", "output": f"said {i}"}) for i in range(12)]
    configs: dict[int, dict[str, str | int]] = {}
    for node, name in ((1, "c"), (2, "b"), (3, "a")):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(rows[node:]) + "\n")
        configs[node] = {"data": str(path), "name": name}
    words = [*SMALL, *METHODS["FedEx-LoRA"], "federation.wait=2"]
    grid = dying(2)
    grid.nodes, grid.configs = [1, 2, 3], configs

    # Execute
    with pytest.raises(Killed):
        go(words, tmp_path / "outputs", "sites", grid)
    again = LocalGrid(2, configs)
    go(["resume=latest"], tmp_path / "outputs", "sites-again", again)

    # Assert: a is absent; b and c are still clients 1 and 2.
    asked = {
        (m.content.config_records["request"]["client"], m.metadata.dst_node_id)
        for m in again.sent
        if m.metadata.message_type == "train"
    }
    assert asked == {(1, 2), (2, 1)}


def test_one_process_at_a_time(stopped: Path) -> None:
    with RunFolder(stopped).alone(), pytest.raises(ConfigError, match="another process still"):
        go(["resume=latest"], stopped.parent, "second")
