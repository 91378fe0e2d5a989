"""The round loop: who is asked, what is refused, when it stops, and what travels."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from federation import Federation, connected
from flwr.app import ArrayRecord, Message, MetricRecord
from local_grid import LocalGrid, puppet, trained

from fedtuners.adapters import Lora, LoraSb
from fedtuners.config import ConfigError
from fedtuners.tasks import Metric
from strategies.algebra import State
from strategies.base import AdapterStrategy, strategy_class
from strategies.exchange import TooFewRepliesError
from strategies.fed_sb import FedSB
from strategies.fedavg_lora import FedAvgLora
from strategies.fedex_lora import FedExLora
from strategies.messages import Reply, Request, read_request
from strategies.packing import HEADER_BYTES, pack
from strategies.updates import Update

STATE: State = {"x.lora_A": torch.ones(2, 5), "x.lora_B": torch.zeros(4, 2)}
Made = Callable[..., Federation]
METHODS = [
    ("fedavg_lora", "lora"),
    ("fedavg_lora", "abba"),
    ("fedavg_lora", "lora_sb"),
    ("ffa_lora", "lora"),
    ("ffa_lora", "abba"),
    ("fedex_lora", "lora"),
    ("fedex_lora", "abba"),
    ("fed_sb", "lora_sb"),
]


def shifted(request: Request) -> State:
    """What client i uploads in round t: a state of its own, the same whenever it is asked."""
    generator = torch.Generator().manual_seed(100 * request.round + request.client)
    return {name: torch.randn(t.shape, generator=generator) for name, t in STATE.items()}


def good(request: Request) -> Reply:
    return trained(request, shifted(request), examples=request.client + 1)


def averaging(grid: LocalGrid, clients: int = 3, **options: Any) -> AdapterStrategy:
    return connected(FedAvgLora(Lora(rank=2)), STATE, grid, clients, **options)


def run(strategy: AdapterStrategy, rounds: int, scores: Sequence[float] = ()) -> list[int]:
    """Run, with these scores as the evaluations of rounds 0, 1, …; returns the rounds run."""
    seen: list[int] = []
    strategy.observers.append(lambda report: seen.append(report.round))

    def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        value = scores[server_round] if server_round < len(scores) else None
        return None if value is None else MetricRecord({strategy.metric: value})

    strategy.start(strategy.exchange.grid, strategy.packed(), rounds, 5, evaluate_fn=measure)
    return seen


# --- what is refused ---------------------------------------------------------------------------


def swapped(state: State) -> State:
    """As many numbers, under other names."""
    return {name.replace("lora_A", "lora_Z"): value for name, value in state.items()}


def wrong(request: Request, kind: str) -> Reply:
    state = shifted(request)
    a, b = "x.lora_A", "x.lora_B"
    if kind == "NaN":
        state[b][0, 0] = math.nan
    if kind == "infinite":
        state[b][0, 0] = math.inf
    states = {
        "name": swapped(state),
        "shape": {a: state[a].T.contiguous(), b: state[b]},
        "dtype": {name: value.double() for name, value in state.items()},
        "missing tensor": {a: state[a]},
    }
    reply = trained(request, states.get(kind, state))
    if kind == "forged manifest":
        reply.arrays = pack({name: value.double() for name, value in state.items()})
    if kind == "no tensors":
        reply.arrays = None
    examples: dict[str, Any] = {
        "zero examples": 0,
        "negative examples": -3,
        "fractional examples": 0.5,
        "NaN examples": math.nan,
        "infinite examples": math.inf,
        "many examples": [1, 2],
    }
    if kind in examples:
        reply.metrics["num-examples"] = examples[kind]
    if kind == "no examples":
        del reply.metrics["num-examples"]
    if kind == "no loss":
        del reply.metrics["loss"]
    if kind == "NaN loss":
        reply.metrics["loss"] = math.nan
    return reply


REASONS = {
    "NaN": r"'x.lora_B' has 1 NaN",
    "infinite": r"'x.lora_B' has 1 NaN or infinite",
    "name": "other names, shapes or types",
    "shape": "other names, shapes or types",
    "dtype": "other names, shapes or types",
    "missing tensor": "other names, shapes or types",
    "forged manifest": "float64",
    "no tensors": "carries no tensors",
    "zero examples": "counts no examples",
    "negative examples": "counts no examples",
    "fractional examples": "counts no examples",
    "NaN examples": "counts no examples",
    "infinite examples": "counts no examples",
    "many examples": "counts no examples",
    "no examples": "counts no examples",
    "no loss": "loss is missing",
    "NaN loss": "loss is missing, NaN",
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_bad_reply_is_refused_and_the_round_goes_on(kind: str) -> None:
    bad = puppet(lambda r: wrong(r, kind) if r.client == 1 else good(r))
    without = puppet(lambda r: good(r) if r.client != 1 else Reply(1, r.round, "failed"))
    strategy, reference = (
        averaging(LocalGrid(2, client=bad)),
        averaging(LocalGrid(2, client=without)),
    )

    run(strategy, 1)
    run(reference, 1)

    assert [update.client for update in strategy.report.updates] == [0, 2]
    with pytest.raises(ValueError, match=REASONS[kind]):
        raise ValueError(strategy.report.problems[1])
    for name, value in reference.state.items():
        assert torch.equal(strategy.state[name], value)


def test_a_round_below_the_minimum_names_every_client() -> None:
    def answer(request: Request) -> Reply:
        kinds = {0: "NaN", 1: "zero examples"}
        return wrong(request, kinds[request.client]) if request.client in kinds else good(request)

    def silent(request: Message, reply: Message) -> list[Message]:
        return [] if read_request(request.content).client == 2 else [reply]

    strategy = averaging(LocalGrid(2, script=silent, client=puppet(answer)), clients=4)

    with pytest.raises(TooFewRepliesError) as raised:
        run(strategy, 1)

    text = str(raised.value)
    assert "round 1 has 1 good replies and needs 2 (federation.minimum_replies)" in text
    for part in ("client 0: tensor", "client 1: its reply counts", "client 2: did not answer"):
        assert part in text
    assert strategy.completed == 0


def test_a_minimum_that_no_round_can_reach_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"asks only 1 of 4 clients: lower it, or raise"):
        averaging(LocalGrid(2, client=puppet(good)), clients=4, fraction=0.25)


# --- who is asked ------------------------------------------------------------------------------


def test_the_sample_of_a_round_depends_on_seed_and_round_alone() -> None:
    def samples(strategy: AdapterStrategy) -> list[list[int]]:
        return [strategy.sample(number) for number in range(1, 30)]

    first = averaging(LocalGrid(), clients=10, fraction=0.3)
    second = averaging(LocalGrid(), clients=10, fraction=0.3)
    assert first.sample(7) == second.sample(7)
    assert samples(first) == samples(second)
    second.seed = 1
    assert samples(first) != samples(second)
    assert all(len(set(chosen)) == 3 for chosen in samples(first))
    assert set().union(*samples(first)) == set(range(10))


def test_only_the_sample_is_asked() -> None:
    grid = LocalGrid(2, client=puppet(good))
    strategy = averaging(grid, clients=6, fraction=0.5)

    run(strategy, 2)

    asked = [read_request(message.content).client for message in grid.sent]
    assert asked == [*strategy.sample(1), *strategy.sample(2)]


# --- when it stops -----------------------------------------------------------------------------


def stopping(metric: str, scores: Sequence[Any], patience: int | None, rounds: int = 6) -> int:
    grid = LocalGrid(2, client=puppet(good))
    return run(averaging(grid, metric=metric, patience=patience), rounds, scores)[-1]


def test_it_stops_when_the_metric_stays_no_better() -> None:
    scores = [0.1, 0.5, 0.4, 0.5, 0.9, 0.9, 0.9]

    assert stopping("exact_match", scores, patience=2) == 3
    assert stopping("exact_match", scores, patience=3) == 6
    assert stopping("exact_match", scores, patience=None) == 6


@pytest.mark.parametrize("metric", ["loss", "perplexity"])
def test_a_falling_loss_is_better(metric: str) -> None:
    assert not Metric(metric, 1.0, 1.0, 1.0, 1).higher_is_better
    assert stopping(metric, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5], patience=1) == 6
    assert stopping(metric, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], patience=2) == 2


def test_the_best_round_is_remembered() -> None:
    strategy = averaging(LocalGrid(2, client=puppet(good)), metric="loss")

    run(strategy, 3, [3.0, 1.0, 2.0, 1.5])

    assert strategy.best == (-1.0, 1)


def test_rounds_without_evaluation_do_not_stop_it() -> None:
    assert stopping("exact_match", [0.1, None, 0.5, None, 0.9, None, 1.0], patience=1) == 6
    assert stopping("exact_match", [0.5, None, 0.1, None, 0.9, None, 1.0], patience=1) == 2


def test_a_nan_metric_is_never_the_best() -> None:
    strategy = averaging(LocalGrid(2, client=puppet(good)))

    run(strategy, 2, [0.5, math.nan, 0.4])

    assert strategy.best == (0.5, 0)


# --- properties of every method ----------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("strategy_type", [FedAvgLora, FedExLora])
def test_the_order_of_the_clients_does_not_matter(strategy_type: Any, order: Any) -> None:
    updates = [Update(c, shifted(Request("", c, 3, round=1)), c + 1, {}) for c in range(3)]
    weights = [update.examples / 6 for update in updates]
    grid = LocalGrid(2, client=puppet(good))
    strategies = [connected(strategy_type(Lora(rank=2)), STATE, grid) for _ in range(2)]

    straight = strategies[0].combine(updates, weights)
    mixed = strategies[1].combine([updates[i] for i in order], [weights[i] for i in order])

    for name, value in straight.items():
        torch.testing.assert_close(mixed[name], value, atol=1e-6, rtol=1e-6)
    products = [_product(s.shared) for s in strategies if s.shared]
    for product in products:
        torch.testing.assert_close(product, products[0], atol=1e-5, rtol=1e-5)


def _product(shared: dict[str, State]) -> torch.Tensor:
    (state,) = shared.values()
    return state["x.residual_L"] @ state["x.residual_R"]


@pytest.mark.parametrize("strategy_type", [FedAvgLora, FedExLora])
def test_one_client_is_the_identity(strategy_type: Any) -> None:
    grid = LocalGrid(1, client=puppet(good))
    strategy = connected(strategy_type(Lora(rank=2)), STATE, grid, clients=1, minimum_replies=1)

    run(strategy, 1)

    upload = shifted(Request("", 0, 1, round=1))
    assert all(torch.equal(strategy.state[name], value) for name, value in upload.items())
    assert all(
        not tensor.numel() for state in strategy.shared.values() for tensor in state.values()
    )


def average_of_all_rounds(past: list[State]) -> State:
    """The known wrong version: a list of uploads that is never cleared."""
    return {name: torch.stack([state[name] for state in past]).mean(0) for name in past[0]}


@pytest.mark.parametrize("strategy_type", [FedAvgLora, FedExLora])
def test_a_round_uses_the_uploads_of_that_round_only(strategy_type: Any) -> None:
    grid = LocalGrid(2, client=puppet(lambda r: trained(r, shifted(r))))
    strategy = connected(strategy_type(Lora(rank=2)), STATE, grid)

    run(strategy, 3)

    uploads = {t: [shifted(Request("", c, 3, round=t)) for c in range(3)] for t in (1, 2, 3)}
    right = average_of_all_rounds(uploads[3])
    for name, value in right.items():
        torch.testing.assert_close(strategy.state[name], value, atol=1e-6, rtol=1e-6)
    wrong_ = average_of_all_rounds([state for states in uploads.values() for state in states])
    assert all((wrong_[name] - right[name]).norm() > 0.5 for name in right)


# --- what travels ------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "adapter"), METHODS)
def test_training_moves_the_weights_and_what_is_frozen_is_sent_once(
    federation: Made, method: str, adapter: str
) -> None:
    made = federation(f"strategy={method}", f"adapter={adapter}")
    before = made.strategy.state
    frozen = [key for key in made.strategy.shared if key in made.exchange.start]

    made.rounds(2)

    for upload in made.uploads(1).values():
        assert upload.keys() == before.keys()
        assert all(not torch.equal(value, before[name]) for name, value in upload.items())
    requests = [read_request(message.content) for message in made.grid.sent]
    for client in made.exchange.nodes:
        own = [r for r in requests if r.client == client and r.round]
        for key in frozen:
            assert [key in request.attached for request in own] == [True, False]
            assert all(key in request.pieces for request in own)
    expected = {"fed_sb": 1, "ffa_lora": 1, "fedavg_lora": adapter == "lora_sb", "fedex_lora": 0}
    assert len(frozen) == expected[method]


@pytest.mark.parametrize("wire", [None, "bfloat16"])
def test_large_tensors_cost_their_own_bytes(wire: str | None) -> None:
    big: State = {f"m{i}.lora_B": torch.zeros(64, 512) for i in range(8)}
    dtype = torch.bfloat16 if wire else None

    def answer(request: Request) -> Reply:
        reply = trained(request, big)
        reply.arrays = pack(big, dtype)
        reply.extra = dict(request.extra)
        return reply

    grid = LocalGrid(2, client=puppet(answer))
    strategy = connected(FedAvgLora(Lora()), big, grid, wire_dtype=wire)

    run(strategy, 1)

    numbers = sum(tensor.numel() for tensor in big.values())
    own = numbers * (2 if wire else 4)
    assert own > 100_000
    for direction in (strategy.exchange.traffic.up, strategy.exchange.traffic.down):
        assert all(own + HEADER_BYTES < size < 1.01 * own for size in direction[1].values())


def test_a_bfloat16_wire_halves_the_bytes_and_stays_close(federation: Made) -> None:
    choice = ("strategy=fedex_lora", "adapter=lora")
    exact, rounded = federation(*choice), federation(*choice, "federation.wire_dtype=bfloat16")

    exact.rounds(1)
    rounded.rounds(1)

    sizes = [sum(t.nbytes for t in made.strategy.state.values()) for made in (exact, rounded)]
    up = [made.exchange.traffic.up[1][0] for made in (exact, rounded)]
    assert sizes[0] == sizes[1]  # the server keeps fp32
    assert up[0] - up[1] == sizes[0] // 2
    for name, value in exact.strategy.state.items():
        assert rounded.strategy.state[name].dtype == value.dtype
        torch.testing.assert_close(rounded.strategy.state[name], value, atol=0.02, rtol=0.02)


# --- the classes that a configuration may name -------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "",
        "os.system",
        "strategies",
        "strategies.base.AdapterStrategyX",
        "strategies.base.Update",
        "strategies.base.random.Random",
        "strategies.exchange.Exchange",
        "strategies.base.Strategy",
        "strategies.algebra.weighted_mean",
        "subprocess.Popen",
    ],
)
def test_only_a_strategy_of_ours_is_looked_up(settings: Any, target: str) -> None:
    config = settings()
    config.strategy = {"_target_": target}

    with pytest.raises(ConfigError, match="is not a strategy of strategies/"):
        strategy_class(config)


def test_every_configured_strategy_is_found(settings: Any) -> None:
    assert strategy_class(settings("strategy=fed_sb")) is FedSB
    assert strategy_class(settings("strategy=fedex_lora", "adapter=lora")) is FedExLora


def test_fed_sb_wants_a_core() -> None:
    FedSB(LoraSb(rank=2))
    with pytest.raises(ValueError, match=r"choose adapter=lora_sb, or strategy=ffa_lora"):
        FedSB(Lora(rank=2))
