"""What every benchmark shares: interleaved times, counted memory, one table and one JSON file.

Times on a busy machine are only worth comparing within one run, so `interleaved` takes its
subjects in turn, A B A B …, and compares medians. Without a GPU a second is one of this process'
processor time, which other programs' load stretches far less than it does the clock on the wall.
What can be counted is counted: bytes kept for the backward pass, bytes allocated at the worst
moment, arithmetic.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
CLOCK = time.perf_counter if torch.cuda.is_available() else time.process_time
LIBRARIES = ("torch", "transformers", "peft", "opacus", "flwr")


@dataclass(frozen=True)
class Row:
    """One figure beside its reference; `ratio` is figure / reference unless given."""

    name: str
    figure: float
    reference: float | None = None
    unit: str = ""
    aim: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """figure / reference."""
        return self.figure / self.reference if self.reference else None


@dataclass(frozen=True)
class Timing:
    """Seconds of one subject over the repeats: the median, and the quartiles as its spread."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.4g} s [{self.low:.4g} … {self.high:.4g}]"


def interleaved(
    subjects: Mapping[str, Callable[[], Any]], repeats: int = 7, warm_up: int = 1
) -> dict[str, Timing]:
    """Seconds of each subject, taken in turn `repeats` times after `warm_up` untimed turns."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(warm_up + repeats):
        for name, call in subjects.items():
            started = CLOCK()
            call()
            if turn >= warm_up:
                seconds[name].append(CLOCK() - started)
    return {name: _timing(values) for name, values in seconds.items()}


def _timing(values: list[float]) -> Timing:
    if len(values) == 1:
        return Timing(*values * 3)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(statistics.median(values), low, high)


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors made within it that are alive at once.

    Exact and repeatable where a process' resident size is neither; scratch space inside one
    kernel is not seen. `peak` is in bytes, above what was there before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._seen: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(storage) for storage in map(_storage, tree_leaves((args, kwargs)))}
        out = func(*args, **(kwargs or {}))
        for storage in map(_storage, tree_leaves(out)):
            if storage is not None and id(storage) not in before and id(storage) not in self._seen:
                self._seen[id(storage)] = storage
                self.alive += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.alive)
        return out

    def _freed(self, size: int) -> None:
        self.alive -= size


def _storage(leaf: Any) -> Any:
    return leaf.untyped_storage() if isinstance(leaf, torch.Tensor) else None


def peak_bytes(call: Callable[[], Any]) -> int:
    """Bytes of tensors that `call` holds at its worst moment, its result included."""
    gc.collect()
    with PeakMemory() as memory:
        result = call()
    del result
    return memory.peak


def saved_bytes(call: Callable[[], torch.Tensor], model: torch.nn.Module) -> int:
    """Bytes that the forward pass keeps for the backward pass, beside the model's own tensors."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = call()
    del loss
    return sum(kept.values())


def flops(call: Callable[[], Any]) -> int:
    """Multiplications and additions of all matrix products in `call`; works on meta tensors."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": CLOCK.__name__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
    }


def _processor() -> str:
    names = (
        [
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        if Path("/proc/cpuinfo").exists()
        else []
    )
    return names[0] if names else platform.processor()


def report(name: str, rows: Sequence[Row], about: Mapping[str, Any], path: str | None) -> None:
    """Print the table of a benchmark, and write it as JSON to `path`."""
    head = ("figure", "measured", "reference", "ratio", "aim", "")
    body = [
        (
            row.name,
            _number(row.figure, row.unit),
            _number(row.reference, row.unit),
            _number(row.ratio),
            row.aim,
            row.note,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    print(f"\n{name}: " + ", ".join(f"{key} {value}" for key, value in about.items()))
    for line in [head, *body]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
    record = {
        "benchmark": name,
        "settings": dict(about),
        "rows": [asdict(row) | {"ratio": row.ratio} for row in rows],
        "machine": machine(),
        "versions": {library: version(library) for library in LIBRARIES},
        "commit": commit(),
    }
    target = Path(path or ROOT / "benchmarks" / "results" / f"{name}.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")


def commit() -> str:
    """The commit that was measured, and whether the folder differs from it; "" outside Git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain") else "")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    made.add_argument("--repeats", type=int, default=5, help="timed turns of each subject")
    made.add_argument("--json", help="where to write the figures; benchmarks/results/ by default")
    return made


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return ""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} {unit}".strip()
