"""What every aggregation method shares: which tensors travel, the round loop, the refusals.

A method is a subclass that says how good updates become the new global tensors (`combine`), whether
that is linear in the upload, and which adapters it is for. The loop is our own because Flower's
neither resumes nor stops early, and lets a round without a single good reply pass in silence.
"""

import math
import random
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO, WARNING
from typing import ClassVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedtuners.adapters import Adapter
from fedtuners.config import Config, ConfigError, FederationConfig, class_named
from fedtuners.logs import located
from fedtuners.tasks.metrics import LOWER_IS_BETTER
from strategies.aggregation import Mean
from strategies.algebra import State
from strategies.exchange import Exchange, TooFewRepliesError
from strategies.messages import DIGEST, TRAIN, Piece, Reply, read_reply, text_hash
from strategies.packing import content_hash, manifest, pack, unpack
from strategies.updates import Observer, RoundReport, Update, examples_of, tensors_of


def strategy_class(config: Config) -> "type[AdapterStrategy]":
    """The class that `strategy` names; only one of this package, whoever sent the configuration."""
    target = str(config.strategy.get("_target_", ""))
    found = class_named(target, "strategies.")
    if found is None or not issubclass(found, AdapterStrategy):
        raise ConfigError(f"strategy._target_={target} is not a strategy of strategies/")
    return found


def wire_dtype(federation: FederationConfig) -> torch.dtype | None:
    """The dtype in which float32 tensors travel, when it is not their own."""
    return torch.bfloat16 if federation.wire_dtype == "bfloat16" else None


class AdapterStrategy(Strategy):
    """Federated averaging of adapter tensors, packed into one array per dtype.

    Parameters
    ----------
    adapter
        The adapter method in use.
    """

    linear: ClassVar[bool]  # the result is a weighted sum of the uploads: masks and noise add up
    only_linear_factor: ClassVar[bool] = False  # clients train the adapter's linear factor alone

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.federation = FederationConfig()
        self.aggregation = Mean()
        self.state: State = {}
        self.shared: dict[str, State] = {}  # content hash → tensors every participant must hold
        self.completed = -1  # rounds; 0: started and evaluated, but not trained
        self.evaluated = 0  # the last round whose model was
        self.report = RoundReport(0)
        # (metric, its round); the metric is negated where lower is better
        self.best: tuple[float, int] = (float("-inf"), 0)
        self.observers: list[Observer] = []
        self.check(adapter)

    def check(self, adapter: Adapter) -> None:
        """Raise ValueError when the method cannot aggregate this adapter."""

    @abstractmethod
    def combine(self, updates: Sequence[Update], weights: Sequence[float]) -> State:
        """The new global trainable tensors; may `share` what every participant must add."""

    def gains(self, shapes: Mapping[str, tuple[int, int]], clients: int) -> State:
        """What a round of so many clients `share`s at most, as tensors on the meta device.

        `shapes` are (out_features, in_features) of the adapted modules. For forecasts of bytes
        and memory; a method that shares nothing leaves this as it is.
        """
        return {}

    def setup(
        self, exchange: Exchange, federation: FederationConfig, metric: str, seed: int
    ) -> None:
        """Connect to the clients; once, before `start`.

        Raises
        ------
        ConfigError
            If a round would ask fewer clients than it insists on.
        """
        self.exchange, self.federation = exchange, federation
        exchange.at_once = federation.at_once
        self.metric, self.seed = metric, seed
        if len(self.sample(1)) < federation.minimum_replies:
            raise ConfigError(
                f"federation.minimum_replies={federation.minimum_replies}, but a round asks only "
                f"{len(self.sample(1))} of {len(exchange.nodes)} clients: lower it, or raise "
                "federation.fraction or federation.clients"
            )
        for digest, state in self.shared.items():
            exchange.pieces[digest] = Piece(manifest(state), pack(state))

    def share(self, state: State, start: bool = False) -> None:
        """Add tensors that every participant must hold from now on; they are sent once to each.

        `start`: their bytes belong to the start of the run, not to a round.
        """
        digest = content_hash(state)[:DIGEST]
        self.shared[digest] = state
        self.exchange.pieces[digest] = Piece(manifest(state), pack(state))
        if start:
            self.exchange.start.add(digest)

    # Flower's interface

    def summary(self) -> None:
        """Log what is about to run."""
        numbers = sum(tensor.numel() for tensor in self.state.values())
        log(INFO, "%s on %s: %s numbers a client", type(self).__name__, self.adapter.name, numbers)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """A training request for each sampled client."""
        about = {"manifest": text_hash(self.manifest())}
        return [
            self.exchange.message(
                *(TRAIN, client, server_round),
                pieces=list(self.shared),
                arrays=arrays,
                extra=about,
            )
            for client in self.sample(server_round)
        ]

    def sample(self, server_round: int) -> list[int]:
        """The clients of a round: the same for the same seed, whatever happened before."""
        clients = sorted(self.exchange.nodes)
        count = max(1, round(self.federation.fraction * len(clients)))
        return sorted(random.Random(f"{self.seed}/{server_round}").sample(clients, count))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Accept or refuse each reply, combine the accepted ones, and pack the result.

        Raises
        ------
        TooFewRepliesError
            If fewer than `federation.minimum_replies` are accepted.
        """
        updates: list[Update] = []
        for message in replies:
            reply = read_reply(message.content)
            try:
                updates.append(self.aggregation.accept(self, reply))
            except ValueError as refused:
                self.report.problems[reply.client] = str(refused)
                log(WARNING, "round %s: client %s refused: %s", server_round, reply.client, refused)
        if len(updates) < self.federation.minimum_replies:
            problems_by_client = sorted(self.report.problems.items())
            reasons = "; ".join(f"client {client}: {why}" for client, why in problems_by_client)
            raise TooFewRepliesError(
                f"round {server_round} has {len(updates)} good replies and needs "
                f"{self.federation.minimum_replies} (federation.minimum_replies): {reasons}"
            )
        self.report.updates = updates
        self.state = self.aggregation.combine(self, updates)
        self.report.together = self.aggregation.measured()
        return self.packed(), MetricRecord({"replies": len(updates)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No messages: evaluation costs no message of its own."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing to aggregate."""
        return None

    # The round loop

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run rounds `completed + 1 … num_rounds`; `timeout` is the deadline of one round.

        Raises
        ------
        TooFewRepliesError
            If a round has fewer good replies than `federation.minimum_replies`.
        """
        self.summary()
        result = Result()
        arrays = initial_arrays
        if self.completed < 0:
            self.completed, self.report = 0, RoundReport(0)
            self._finish(arrays, result, evaluate_fn)
        for server_round in range(self.completed + 1, num_rounds + 1):
            if self._stale():
                log(INFO, "no better %s since round %s: stopping", self.metric, self.best[1])
                break
            with located(round=server_round):
                self.report = RoundReport(server_round, last=server_round == num_rounds)
                arrays = self._round(grid, server_round, arrays, timeout)
                self._finish(arrays, result, evaluate_fn)
        result.arrays = arrays
        return result

    def _round(
        self, grid: Grid, server_round: int, arrays: ArrayRecord, deadline: float
    ) -> ArrayRecord:
        """Ask the round's clients, and combine what they answer within `deadline` seconds."""
        started = time.monotonic()
        messages = self.configure_train(server_round, arrays, ConfigRecord(), grid)
        replies, self.report.problems = self.aggregation.ask(
            self.exchange, list(messages), server_round, deadline
        )
        combined = self.aggregate_train(server_round, replies)[0] or arrays
        self.report.train_seconds = time.monotonic() - started
        self.completed = server_round
        return combined

    def packed(self) -> ArrayRecord:
        """The global trainable tensors as they travel."""
        return pack(self.state, wire_dtype(self.federation))

    def manifest(self) -> str:
        """Names, shapes and dtypes of what `packed` holds."""
        return manifest(self.state, wire_dtype(self.federation))

    def received(self, state: State) -> State:
        """A state as the clients will hold it, rounded by the wire."""
        dtype = wire_dtype(self.federation)
        return unpack(pack(state, dtype), manifest(state, dtype))

    def accept(self, reply: Reply) -> Update:
        """The update in a reply; ValueError says why it does not count."""
        # A client that trains privately tells its ε instead of a loss, which no noise protects.
        told = reply.metrics.get("loss", reply.metrics.get("epsilon"))
        state = tensors_of(reply, self.manifest())
        if not isinstance(told, float | int) or not math.isfinite(told):
            raise ValueError("its training loss is missing, NaN or infinite")
        return Update(reply.client, state, examples_of(reply), reply.metrics)

    def _finish(
        self,
        arrays: ArrayRecord,
        result: Result,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None,
    ) -> None:
        """Evaluate the global model, remember the best round, tell the observers."""
        report, started = self.report, time.monotonic()
        measured = evaluate_fn(report.round, arrays) if evaluate_fn else None
        report.evaluate_seconds = time.monotonic() - started
        if measured is not None:
            report.metrics, self.evaluated = dict(measured.items()), report.round
            result.evaluate_metrics_serverapp[report.round] = measured
            value = float(report.metrics[self.metric])
            merit = -value if self.metric in LOWER_IS_BETTER else value
            if merit > self.best[0]:
                self.best = (merit, report.round)
        for observer in self.observers:
            observer(report)

    def _stale(self) -> bool:
        patience = self.federation.patience
        if patience is None or self.evaluated < self.completed:
            return False
        return self.completed - self.best[1] >= patience
