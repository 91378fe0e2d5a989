"""Private federations, end to end: what they report, refuse and remember."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from local_grid import LocalGrid

from fedtuners.config import Config, ConfigError, compose
from fedtuners.privacy import Event, PrivacyError, epsilon, forecast, make_plan
from server_app.run import run
from strategies.exchange import TooFewRepliesError

CONF = Path(__file__).parent.parent.parent / "conf"
SMALL = [
    *("privacy=example", "privacy.accountant=pld", "partition=iid", "federation.clients=2"),
    *("federation.rounds=2", "train.steps=2", "train.batch_size=8", "train.micro_batch=4"),
    *("data.train_rows=120", "data.test_rows=4", "data.max_new_tokens=2", "evaluation.every=9"),
    *("start.rows=16", "adapter.targets=[q_proj]"),
]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNERS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("FEDTUNERS_OUTPUTS", str(tmp_path / "outputs"))


def small(*overrides: str) -> Config:
    return compose([*SMALL, *overrides], CONF)


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    text = (tmp_path / "outputs" / "latest" / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if "client" in line]


def events(report: dict[str, Any], steps: int) -> list[Event]:
    (rate, _), (sigma, _) = report["sample_rate"], report["noise_multiplier"]
    return [Event(sigma, 16 / 60, 2), Event(sigma, rate, steps)]


def test_the_reported_epsilon_is_recomputed_and_nothing_else_is_told(tmp_path: Path) -> None:
    report = run(small(), LocalGrid(2), "run")["privacy"]
    prv, rdp = (epsilon(events(report, 4), report["delta"], name) for name in ("prv", "rdp"))
    assert report["epsilon"] == pytest.approx(prv, abs=0.02)
    assert 2.9 < report["epsilon"] <= 3.0
    assert report["epsilon"] < rdp
    assert report["delta"] < 1 / 60
    for line in lines(tmp_path):
        assert line.keys() == {
            *("round", "client", "up", "down", "num-examples", "protected_units"),
            *("epsilon", "delta", "noise_multiplier", "sample_rate"),
        }


KILLED = """
import os, signal, sys
from pathlib import Path
from local_grid import LocalGrid
from fedtuners.config import compose
from fedtuners.privacy import client
from server_app.run import run

train, calls = client.private_train, []

def killed(*args):
    calls.append(args)
    if len(calls) == 4:  # round 2, the second of two clients
        os.kill(os.getpid(), signal.SIGKILL)
    return train(*args)

client.private_train = killed
run(compose(sys.argv[1:], Path("conf")), LocalGrid(2), "run")
"""


def test_a_killed_and_resumed_run_reports_the_epsilon_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = subprocess.run(
        [sys.executable, "-c", KILLED, *SMALL],
        cwd=CONF.parent,
        env=os.environ | {"PYTHONPATH": f"{CONF.parent}:{CONF.parent / 'tests'}"},
        capture_output=True,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    # with fewer examples in memory at once, which is no other question
    resumed = run(small("resume=latest", "train.micro_batch=2"), LocalGrid(2), "other")
    books = {path: path.read_text().count('"kind":"spent"') for path in tmp_path.rglob("ledger.*")}

    monkeypatch.setenv("FEDTUNERS_STATE", str(tmp_path / "undisturbed"))
    undisturbed = run(small(), LocalGrid(2), "run")

    assert resumed["privacy"] == undisturbed["privacy"]
    assert list(books.values()) == [4, 4]  # each client's two sketches and two rounds


@pytest.mark.parametrize(
    "method",
    [
        "strategy=fedavg_lora adapter=lora",
        "strategy=ffa_lora adapter=lora",
        "strategy=fedex_lora adapter=lora",
        "strategy=ffa_lora adapter=abba",
        "strategy=fed_sb adapter.init=weights privacy.secure=true",
    ],
)
def test_every_strategy_trains_privately(method: str) -> None:
    given = ["privacy.noise_multiplier=0.7", "privacy.epsilon=null", "federation.rounds=1"]
    report = run(small(*method.split(), *given), LocalGrid(2), "run")["privacy"]
    event = Event(0.7, 8 / 60, 2)
    assert report["epsilon"] == pytest.approx(epsilon([event], report["delta"], "pld"))


def test_a_site_that_has_spent_its_budget_trains_no_more(tmp_path: Path) -> None:
    rows = [{"instruction": f"say {i}", "input": "", "output": f"{i}"} for i in range(60)]
    nodes: dict[int, dict[str, str | int]] = {}
    for node in (1, 2):
        own = [*rows, {**rows[0], "output": f"site {node}"}]
        (tmp_path / f"{node}.jsonl").write_text("\n".join(map(json.dumps, own)))
        nodes[node] = {
            "data": str(tmp_path / f"{node}.jsonl"),
            "name": f"site {node}",
            "state": str(tmp_path / f"state {node}"),
        }
    config = small("adapter=lora", "strategy=fedavg_lora", "federation.rounds=1")
    first = run(config, LocalGrid(2, nodes), "first")["privacy"]
    assert 2.9 < first["epsilon"] <= 3.0
    # the same question has the same answer, at no cost; another one would have a cost
    repeated = run(config, LocalGrid(2, nodes), "second")["privacy"]
    assert repeated["epsilon"] == first["epsilon"]
    again = ("adapter=lora", "strategy=fedavg_lora", "federation.rounds=1")
    for change, said in (
        ("seed=1", "privacy budget spent: these rows have cost"),
        ("data.train_rows=50", "privacy budget spent: these rows have cost"),
        ("+data.rename.input=context", "privacy budget spent: these rows have cost"),
        ("data.train_rows=20", "must be below 1/61, one over the rows of this site before"),
        ("privacy.unit=instruction", "have spent of their budget with privacy.unit=null"),
    ):
        with pytest.raises(TooFewRepliesError, match=said):
            run(small(*again, change), LocalGrid(2, nodes), "third")
    nodes[1]["epsilon"] = nodes[2]["epsilon"] = 1
    with pytest.raises(TooFewRepliesError, match="run it with privacy=example"):
        run(compose([*SMALL, "privacy=none"], CONF), LocalGrid(2, nodes), "fourth")


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["privacy.delta=0.5"], "must be below 1/60"),
        (["train.batch_size=61"], "train.batch_size=61 is above the 60"),
    ],
)
def test_a_plan_that_cannot_be_had_stops_the_run(overrides: list[str], match: str) -> None:
    with pytest.raises(PrivacyError, match=match):
        run(small(*overrides), LocalGrid(2), "run")


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["start.source=server"], "would read the clients' own training rows"),
        (["train.gradient_checkpointing=true"], "gives no gradients per example"),
        (["privacy.epsilon=null"], "are both null"),
        (["privacy.noise_multiplier=0"], "must be above 0"),
    ],
)
def test_settings_that_break_the_promise_are_refused(overrides: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        run(small(*overrides), LocalGrid(2), "run")


def test_the_forecast_is_what_the_ledger_will_say() -> None:
    config = small()
    plan = make_plan(config, 60)
    total = epsilon(plan.events(), plan.delta, "pld")
    assert f"{total:.2f} after round 2 (pld)" in forecast(config, [60])
    assert f"σ {plan.round.noise_multiplier:.3f}" in forecast(config, [60])
    assert "after the start" in forecast(config, [60])
    assert "after the start" not in forecast(small("start.source=public", "start.data=x"), [60])
