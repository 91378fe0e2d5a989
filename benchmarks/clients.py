"""The server's work by the number of clients in a round, 10 to 1,000: seconds and memory.

    python -m benchmarks.clients

Answers as they come from the wire are read, checked and averaged by the strategy itself, Fed-SB
with the upload of Llama-3.2-1B at rank 64, or FedEx-LoRA beside it, which needs every upload at
once. Answers are made one at a time, so that what is counted is what the aggregation holds.
"""

from collections.abc import Iterator

import torch
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.harness import CLOCK, PeakMemory, Row, parser, report
from fedtuners.adapters import Adapter, Lora, LoraSb
from fedtuners.config import FederationConfig
from strategies.aggregation import Mean
from strategies.algebra import State
from strategies.base import AdapterStrategy
from strategies.fed_sb import FedSB
from strategies.fedex_lora import FedExLora
from strategies.messages import Reply, text_hash
from strategies.packing import pack

MB = 2**20


class Answers:
    """The messages of a round's clients, each made when it is read."""

    def __init__(self, strategy: AdapterStrategy, clients: int) -> None:
        self.strategy, self.clients = strategy, clients

    def __iter__(self) -> Iterator[Message]:
        draw = torch.Generator().manual_seed(0)
        names = {"manifest": text_hash(self.strategy.manifest())}
        for client in range(self.clients):
            state = {
                name: torch.randn(tensor.shape, generator=draw)
                for name, tensor in self.strategy.state.items()
            }
            metrics = {"num-examples": 100 + client, "loss": 1.0}
            reply = Reply(client, 1, arrays=pack(state), metrics=metrics, extra=names)
            yield Message(reply.content(), dst_node_id=1, message_type="train")
            del state, reply


def strategy_on(method: type[AdapterStrategy], adapter: Adapter, state: State) -> AdapterStrategy:
    """A strategy that can aggregate, without a network."""
    strategy = method(adapter)
    strategy.aggregation = Mean()
    strategy.federation = FederationConfig(minimum_replies=1)
    strategy.state = state
    strategy.share = lambda *_, **__: None  # type: ignore[method-assign]
    return strategy


def measured(strategy: AdapterStrategy, clients: int) -> tuple[float, int]:
    """(seconds, peak bytes of tensors) of one round's aggregation."""
    making = CLOCK()
    for _ in Answers(strategy, clients):
        pass
    making = CLOCK() - making
    started = CLOCK()
    strategy.aggregate_train(1, Answers(strategy, clients))
    seconds = CLOCK() - started - making
    with PeakMemory() as memory:
        strategy.aggregate_train(1, Answers(strategy, min(clients, 100)))
    return seconds, memory.peak


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    options.add_argument("--modules", type=int, default=112)
    options.add_argument("--rank", type=int, default=64)
    parsed = options.parse_args()
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    core = {f"{i}.lora_sb_R": torch.zeros(parsed.rank, parsed.rank) for i in range(parsed.modules)}
    thin: State = {}
    for module in range(8):
        thin |= {f"{module}.lora_A": torch.zeros(8, 256), f"{module}.lora_B": torch.zeros(256, 8)}
    rows: list[Row] = []
    for label, strategy, most in (
        ("fed_sb", strategy_on(FedSB, LoraSb(rank=parsed.rank), core), 1000),
        ("fedex_lora", strategy_on(FedExLora, Lora(rank=8), thin), 100),
    ):
        first: tuple[float, float] | None = None
        for clients in (count for count in parsed.clients if count <= most):
            seconds, peak = measured(strategy, clients)
            first = first or (seconds / clients, float(peak))
            aims = ("1: linear", "1: flat") if label == "fed_sb" else ("", "")
            rows += [
                Row(
                    f"{label}, {clients} clients: ms a client",
                    1e3 * seconds / clients,
                    1e3 * first[0],
                    "ms",
                    aims[0],
                ),
                Row(
                    f"{label}, {min(clients, 100)} clients: peak",
                    peak / MB,
                    first[1] / MB,
                    "MB",
                    aims[1],
                ),
            ]
    report("clients", rows, vars(parsed), parsed.json)


if __name__ == "__main__":
    main()
