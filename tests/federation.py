"""Federations whose parts a test can look into, with real clients and with puppets."""

from dataclasses import replace
from typing import Any

from flwr.serverapp.strategy import Result
from hydra.utils import instantiate
from local_grid import LocalGrid

from fedtuners.config import Config, FederationConfig, make_adapter, to_json
from fedtuners.tasks import load
from fedtuners.tuned import TunedModel
from server_app.clients import meet
from server_app.start import start
from strategies.aggregation import make_aggregation
from strategies.algebra import State
from strategies.base import AdapterStrategy, strategy_class
from strategies.exchange import Exchange
from strategies.messages import TRAIN, read_reply
from strategies.packing import unpack
from strategies.updates import RoundReport


def connected(
    strategy: AdapterStrategy,
    state: State,
    grid: LocalGrid,
    clients: int = 3,
    metric: str = "exact_match",
    **federation: Any,
) -> AdapterStrategy:
    """A strategy that holds `state` and asks the puppets of a grid; no model, no data."""
    nodes = {client: grid.nodes[client % len(grid.nodes)] for client in range(clients)}
    exchange = Exchange.create(grid, "run", nodes, "{}")
    strategy.setup(exchange, FederationConfig(**federation), metric, 0)
    strategy.state = state
    return strategy


class Federation:
    """Strategy, exchange and global model of one run on a local grid."""

    def __init__(self, config: Config, grid: LocalGrid) -> None:
        labels = list(load(config.data, config.seed).labels)
        self.config = config = replace(config, data=replace(config.data, labels=labels))
        self.grid = grid
        adapter = make_adapter(config)
        self.strategy: AdapterStrategy = instantiate(config.strategy, _partial_=True)(adapter)
        self.strategy.aggregation = make_aggregation(config)
        self.tuned = TunedModel(config, strategy_class(config).only_linear_factor)
        self.exchange = meet(grid, "run", config, to_json(config))
        measured = config.data.measured
        self.strategy.setup(self.exchange, config.federation, measured, config.seed)
        start(self.tuned, self.strategy, self.exchange)
        self.reports: list[RoundReport] = []
        self.strategy.observers.append(self.reports.append)

    def rounds(self, number: int) -> Result:
        """Run up to this round, and install the result into the global model."""
        result = self.strategy.start(self.grid, self.strategy.packed(), number, timeout=60)
        self.install()
        return result

    def install(self) -> None:
        """Put the global tensors into the global model, as the clients have them."""
        state = unpack(self.strategy.packed(), self.strategy.manifest())
        self.tuned.install(state, self.strategy.shared)

    def uploads(self, server_round: int) -> dict[int, State]:
        """What the clients sent in a round, read again from the recorded messages."""
        replies = [
            read_reply(message.content)
            for message in self.grid.replies
            if message.metadata.message_type == TRAIN
        ]
        names = self.strategy.manifest()
        return {
            reply.client: unpack(reply.arrays, names)
            for reply in replies
            if reply.round == server_round and reply.arrays is not None
        }

    def weights(self, server_round: int) -> list[float]:
        """p_i of a round's updates, in the order of the clients."""
        counts = [update.examples for update in self.reports[server_round].updates]
        return [count / sum(counts) for count in counts]
