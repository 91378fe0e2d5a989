"""The run folder: everything a run leaves behind, written as it happens.

    config.yaml  metrics.jsonl  summary.json  metric.png  adapter/  lora/  tensorboard/  checkpoint/

`metrics.jsonl` has a line per round and client, and a line per round with the global metric.
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import SafetensorError

from fedtuners.config import Config, ConfigError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FullDiskError(OSError):
    """The disk took no more of a run's results."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, and how they are written."""

    path: Path

    @classmethod
    def create(cls, config: Config, strategy: str) -> "RunFolder":
        """A new folder `<date>_<strategy>`, with `latest` pointing to it."""
        root = outputs(config)
        root.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y-%m-%d_%H%M%S")
        path, number = root / f"{stamp}_{strategy}", 1
        while True:
            try:
                path.mkdir()
                break
            except FileExistsError:
                number += 1
                path = root / f"{stamp}_{strategy}-{number}"
        folder = cls(path)
        folder.write_text("config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
        folder.point_latest()
        return folder

    @classmethod
    def resume(cls, config: Config) -> "RunFolder":
        """The folder that `resume` names: a path, a name in the outputs folder, or `latest`."""
        assert config.resume is not None
        for path in (outputs(config) / config.resume, Path(config.resume).expanduser()):
            if (path / "checkpoint").is_dir():
                folder = cls(path.resolve())
                folder.point_latest()
                return folder
        raise ConfigError(
            f"resume={config.resume}: no run with a checkpoint there or in {outputs(config)}"
        )

    @property
    def checkpoint(self) -> Path:
        """Where its checkpoints lie."""
        return self.path / "checkpoint"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within it no other process can work on this run; ConfigError when one already does."""
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with its process
            except BlockingIOError as error:
                raise ConfigError(
                    f"another process still works on {self.path}: stop it, or wait for its end"
                ) from error
            yield

    @contextmanager
    def room(self) -> Iterator[None]:
        """Within it a full disk is one sentence, which says how to go on; FullDiskError."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            if isinstance(error, OSError) and error.errno not in FULL:
                raise
            raise FullDiskError(
                f"{self.path} could not be written ({error}): make room, then go on with "
                f"resume={self.path}"
            ) from error

    def point_latest(self) -> None:
        """Make `outputs/latest` this run, in one step."""
        link = self.path.parent / f".latest-{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(self.path.name)
        os.replace(link, self.path.parent / "latest")

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        part = self.path / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, self.path / name)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file whole or not at all."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def append_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Add lines to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one that was cut off while being written is left out."""
        path = self.path / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]

    def rewind(self, completed: int) -> None:
        """Take out of metrics.jsonl what was written after round `completed`."""
        lines = [line for line in self.read_metrics() if line["round"] <= completed]
        self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def outputs(config: Config) -> Path:
    """The folder of all run folders."""
    name = config.outputs or os.environ.get("FEDTUNERS_OUTPUTS") or "outputs"
    return Path(name).expanduser().absolute()
