"""Tables of whole federations: finished runs are not repeated, and overlaps are what they say."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks import private_demo, private_snli, start_sources
from benchmarks.private_snli import by_epsilon, table
from benchmarks.tables import Line, fill, markdown, spread


def test_finished_runs_are_kept_and_not_repeated(tmp_path: Path) -> None:
    path, runs = tmp_path / "results" / "runs.jsonl", list[Line]()

    def measure(key: Line) -> Line:
        runs.append(key)
        return {"score": 10 * key["seed"]}

    fill(path, [{"seed": 1}], measure, minutes=1)
    done = fill(path, [{"seed": 1}, {"seed": 2}], measure, minutes=1)
    late = fill(path, [{"seed": 3}], measure, minutes=-1)

    assert runs == [{"seed": 1}, {"seed": 2}]
    assert done == late == [{"seed": 1, "score": 10}, {"seed": 2, "score": 20}]
    assert [json.loads(line) for line in path.read_text().splitlines()] == done


def test_tables_are_markdown() -> None:
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert [spread([]), spread([1.25]), spread([1.0, 2.0], 2)] == ["", "1.2", "1.50 ± 0.71"]


@pytest.mark.parametrize("study", [private_snli, private_demo])
def test_every_method_is_run_at_every_epsilon(
    study: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods, common = study.METHODS, study.COMMON  # type: ignore[attr-defined]
    words: list[list[str]] = []
    monkeypatch.setattr(
        private_snli,
        "measured",
        lambda given, epsilon: words.append([*given]) or {"accuracy": 0.5, "parameters": 7},
    )
    parsed = Namespace(
        seeds=[0],
        epsilons=[1.0, float("inf")],
        minutes=1,
        results=tmp_path / "r",
        overrides=["a=1"],
    )
    shown = table(by_epsilon(parsed, methods, common), methods)
    assert len(words) == 2 * len(methods)
    assert all(given[: len(common) + 1] == [*common, "a=1"] for given in words)
    assert all(f"| {method} | 7 | 50.0 | 50.0 |" in shown for method in methods)


def test_the_overlap_is_one_for_equal_spaces_and_by_chance_r_over_n() -> None:
    def random(rows: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(rows, 8, generator=draw)).Q

    draw = torch.Generator().manual_seed(0)
    U, V = random(64), random(400)
    turned = torch.linalg.qr(torch.randn(8, 8, generator=draw)).Q
    exact = {"layer": (U, V)}
    others = {"layer": (random(64), random(400))}

    assert start_sources.overlaps({"layer": (U @ turned, V)}, exact) == pytest.approx((1, 1))
    left, right = start_sources.overlaps(others, exact)
    assert left == pytest.approx(8 / 64, abs=0.05)
    assert right == pytest.approx(8 / 400, abs=0.02)
