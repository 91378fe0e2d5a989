"""What a client's answer is to a strategy, and what a round is to those who watch it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from strategies.algebra import State
from strategies.checks import check_finite
from strategies.messages import Metrics, Reply, text_hash
from strategies.packing import unpack


@dataclass
class Update:
    """One client's good answer: its tensors by name, its weight, what it measured."""

    client: int
    state: State
    examples: int
    metrics: Metrics


@dataclass
class RoundReport:
    """What an observer learns when a round is over (round 0: the start)."""

    round: int
    updates: list[Update] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)  # client → why it did not count
    metrics: Metrics = field(default_factory=dict)  # of the evaluated global model, if it was
    together: Metrics = field(default_factory=dict)  # of the clients as one, by the aggregation
    train_seconds: float = 0.0  # from the first request to the combined answers
    evaluate_seconds: float = 0.0
    last: bool = False


Observer = Callable[[RoundReport], None]


def tensors_of(reply: Reply, names: str) -> State:
    """A reply's tensors: those of the manifest `names`, and finite; ValueError says why not."""
    if reply.arrays is None:
        raise ValueError("its reply carries no tensors")
    if reply.extra.get("manifest") != text_hash(names):
        raise ValueError("its tensors have other names, shapes or types than the run's")
    state = unpack(reply.arrays, names)
    check_finite(state)
    return state


def examples_of(reply: Reply) -> int:
    """How many examples a reply stands for; ValueError if it does not say."""
    examples = reply.metrics.get("num-examples")
    if not isinstance(examples, int) or examples <= 0:
        raise ValueError("its reply counts no examples")
    return examples
