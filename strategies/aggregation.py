"""How the uploads of a round are brought together: plainly, or under protection.

`aggregation` in the configuration names one class of this package: the plain `Mean`, a robust rule
(robust.py), noise by the server (central_dp.py), or secure aggregation (secure.py). One of them and
never two: what a robust rule must compare is what secure aggregation hides. A protection replaces
the mean of a method that is linear in the upload; the method then sees one update, the result.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar

from flwr.app import Message

from fedtuners.config import Config, ConfigError, class_named
from strategies.algebra import State
from strategies.exchange import Exchange
from strategies.mean import StreamingMean, num_example_weights, weighted_mean
from strategies.messages import Metrics, Reply
from strategies.updates import Update

if TYPE_CHECKING:
    from strategies.base import AdapterStrategy


@dataclass
class Mean:
    """The method's own rule over the uploads as they are."""

    needs: ClassVar[str] = ""  # what a method must be linear for
    taken_in: StreamingMean = field(default_factory=StreamingMean, init=False, repr=False)

    def check(self, strategy: "AdapterStrategy", config: Config) -> None:
        """Raise ConfigError when the method or the run cannot have this protection."""
        if self.needs and not strategy.linear:
            raise ConfigError(
                f"aggregation={self.name} {self.needs}, and "
                f"strategy={type(strategy).__module__.split('.')[-1]} needs each client's own "
                "factors: choose strategy=fedavg_lora, ffa_lora or fed_sb, or aggregation=mean"
            )

    @property
    def name(self) -> str:
        """The choice in conf/aggregation that names this class."""
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in type(self).__name__)[1:]

    def ask(
        self, exchange: Exchange, messages: Sequence[Message], round_: int, deadline: float
    ) -> tuple[Iterable[Message], dict[int, str]]:
        """Send the training requests; good replies in order of client, and problems by client.

        The requests are sent as the replies are read, so that memory does not grow with their
        number; the problems are complete when the replies are.
        """
        return exchange.ask_in_turn(messages, round_, deadline)

    def accept(self, strategy: "AdapterStrategy", reply: Reply) -> Update:
        """The update in a reply; ValueError says why it does not count.

        For a method that is linear in the upload its tensors are taken into the mean at once, so
        that memory does not grow with the clients. A rule with a `combine` of its own gets them.
        """
        update = strategy.accept(reply)
        if strategy.linear and type(self).combine is Mean.combine:
            self.taken_in.add(update.state, update.examples)
            update.state = {}
        return update

    def combine(self, strategy: "AdapterStrategy", updates: Sequence[Update]) -> State:
        """The new global trainable tensors."""
        if strategy.linear:
            mean, self.taken_in = self.taken_in, StreamingMean()
            return combined(strategy, mean.result(), updates)
        weights = num_example_weights([update.examples for update in updates])
        return strategy.combine(updates, weights)

    def reduce(self, states: Sequence[State], examples: Sequence[int]) -> State:
        """One state for several, such as the sketches of a start."""
        return weighted_mean(states, num_example_weights(examples))

    def measured(self) -> Metrics:
        """What the last round's `combine` learnt of the clients together."""
        return {}


def combined(strategy: "AdapterStrategy", state: State, updates: Sequence[Update]) -> State:
    """The method's result when the uploads have already become one state."""
    examples = max(1, sum(update.examples for update in updates))
    return strategy.combine([Update(-1, state, examples, {})], [1.0])


def make_aggregation(config: Config) -> Mean:
    """The aggregation that the configuration names; only a class of this package, with its fields.

    A client builds it from what a server sent it, so nothing else may be called.
    """
    settings = dict(config.aggregation)
    target = str(settings.pop("_target_", ""))
    found = class_named(target, "strategies.")
    if found is None or not issubclass(found, Mean):
        raise ConfigError(f"aggregation._target_={target} is not an aggregation of strategies/")
    known = [key.name for key in fields(found) if key.init]
    for key in settings:
        if key not in known:
            raise ConfigError(f"aggregation has no key '{key}'; it has {', '.join(known)}")
    try:
        return found(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"aggregation: {error}") from error
