"""What benchmarks measure with: turns taken in order, bytes counted exactly, a readable record."""

import json
from pathlib import Path

import torch
from torch import nn

from benchmarks.harness import Row, flops, interleaved, peak_bytes, report, saved_bytes


def test_subjects_take_turns() -> None:
    turns: list[str] = []
    calls = {name: lambda name=name: turns.append(name) for name in "ab"}

    seconds = interleaved(calls, repeats=2, warm_up=1)

    assert turns == list("ababab")
    assert seconds.keys() == set("ab")
    assert all(0 <= time.low <= time.median <= time.high for time in seconds.values())


def test_the_peak_is_what_lives_at_once() -> None:
    def two_at_once() -> torch.Tensor:
        first = torch.zeros(1000)
        second = first + 1
        del first
        return second + 1

    assert peak_bytes(two_at_once) == 2 * 4000
    assert peak_bytes(lambda: torch.zeros(1000).view(10, 100)) == 4000


def test_only_what_a_trained_weight_needs_is_kept() -> None:
    x = torch.randn(5, 8, requires_grad=True)
    frozen, trained = nn.Linear(8, 8, bias=False).requires_grad_(False), nn.Linear(8, 8, bias=False)

    assert saved_bytes(lambda: frozen(x).sum(), frozen) == 0
    assert saved_bytes(lambda: trained(x).sum(), trained) == 5 * 8 * 4


def test_arithmetic_is_counted_without_weights() -> None:
    with torch.device("meta"):
        layer, x = nn.Linear(8, 4, bias=False), torch.zeros(3, 8)

    assert flops(lambda: layer(x)) == 2 * 3 * 8 * 4


def test_a_report_says_what_was_measured_on_what(tmp_path: Path, capsys: object) -> None:
    rows = [Row("time", 1.0, 2.0, "s", "≤ .5"), Row("count", 3.0)]

    report("example", rows, {"rank": 4}, str(tmp_path / "example.json"))

    record = json.loads((tmp_path / "example.json").read_text())
    assert [row["ratio"] for row in record["rows"]] == [0.5, None]
    assert record["settings"] == {"rank": 4}
    assert {"machine", "versions", "commit"} <= record.keys()
