"""A round at the server by the number of clients, 10 to 1,000: seconds and memory.

    python -m benchmarks.clients

Whole rounds of Fed-SB, with the upload of Llama-3.2-1B at rank 64, and of FedEx-LoRA beside it,
which needs every upload at once: requests, answers, their checks, the mean. The clients answer in
this process with random tensors, and their time is taken off. Memory is the most that messages and
tensors took together; `federation.at_once` bounds it.
"""

import tracemalloc
from collections.abc import Iterable

import torch
from flwr.app import Context, Message

from benchmarks.harness import CLOCK, PeakMemory, Row, parser, report
from fedtuners.adapters import Adapter, Lora, LoraSb
from fedtuners.config import FederationConfig
from server_app.local import InProcessGrid
from strategies.algebra import State
from strategies.base import AdapterStrategy
from strategies.exchange import Exchange
from strategies.fed_sb import FedSB
from strategies.fedex_lora import FedExLora
from strategies.messages import Reply, read_request, text_hash
from strategies.packing import manifest, pack

MB = 2**20


class Crowd(InProcessGrid):
    """Clients that answer with random tensors, and the seconds that making them took."""

    def __init__(self, state: State) -> None:
        super().__init__(1, self.made)
        self.state, self.names = state, {"manifest": text_hash(manifest(state))}
        self.seconds = 0.0

    def made(self, message: Message, context: Context) -> Message:
        """The answer of one client."""
        asked = read_request(message.content)
        draw = torch.Generator().manual_seed(asked.client)
        state = {name: torch.randn(t.shape, generator=draw) for name, t in self.state.items()}
        metrics = {"num-examples": 100 + asked.client, "loss": 1.0}
        reply = Reply(asked.client, 1, arrays=pack(state), metrics=metrics, extra=self.names)
        return Message(reply.content(), reply_to=message)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Every request is answered in turn, beside the clock."""
        started = CLOCK()
        answers = [self.answer(message) for message in messages]
        self.seconds += CLOCK() - started
        return answers


def one_round(method: type[AdapterStrategy], adapter: Adapter, state: State, clients: int) -> float:
    """Seconds of the server in one round."""
    strategy, grid = method(adapter), Crowd(state)
    exchange = Exchange.create(grid, "run", dict.fromkeys(range(clients), 1), "{}")
    strategy.setup(exchange, FederationConfig(minimum_replies=1), "score", 0)
    strategy.state, strategy.completed = state, 0
    started = CLOCK()
    strategy.start(grid, strategy.packed(), 1, timeout=3600)
    return CLOCK() - started - grid.seconds


def measured(
    method: type[AdapterStrategy], adapter: Adapter, state: State, clients: int
) -> tuple[float, int]:
    """(seconds of the server, peak bytes) of one round, in two passes."""
    seconds = one_round(method, adapter, state, clients)
    tracemalloc.start()
    with PeakMemory() as tensors:
        one_round(method, adapter, state, clients)
    messages = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds, tensors.peak + messages


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    options.add_argument("--modules", type=int, default=112)
    options.add_argument("--rank", type=int, default=64)
    parsed = options.parse_args()
    core = {f"{i}.lora_sb_R": torch.zeros(parsed.rank, parsed.rank) for i in range(parsed.modules)}
    thin: State = {}
    for module in range(8):
        thin |= {f"{module}.lora_A": torch.zeros(8, 256), f"{module}.lora_B": torch.zeros(256, 8)}
    rows: list[Row] = []
    for method, adapter, state, most in (
        (FedSB, LoraSb(rank=parsed.rank), core, 1000),
        (FedExLora, Lora(rank=8), thin, 100),
    ):
        one_round(method, adapter, state, 2)  # imports and first allocations
        first: tuple[float, int] | None = None
        for clients in (count for count in parsed.clients if count <= most):
            seconds, peak = measured(method, adapter, state, clients)
            first = first or (seconds / clients, peak)
            label = f"{method.__name__}, {clients} clients"
            each, reference = 1e3 * seconds / clients, 1e3 * first[0]
            aim = "1: linear" if method.linear else ""
            rows.append(Row(f"{label}: ms a client", each, reference, "ms", aim))
            rows.append(Row(f"{label}: peak", peak / MB, first[1] / MB, "MB"))
    report("clients", rows, vars(parsed), parsed.json)


if __name__ == "__main__":
    main()
