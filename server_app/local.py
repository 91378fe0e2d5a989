"""A Flower grid inside one process: requests go straight to a client's function, one by one.

For comparisons of many small federations, where processes would cost more than the training. The
messages, their bytes and the refusals are those of a deployment.
"""

from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity


class InProcessGrid(Grid):
    """`nodes` nodes with the ids 1, 2, …, all answered by `client`."""

    def __init__(self, nodes: int, client: Callable[[Message, Context], Message]) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.nodes, self.client = list(range(1, nodes + 1)), client
        self.configs = {node: self.config(node) for node in self.nodes}

    @staticmethod
    def config(node: int) -> dict[str, Any]:
        """A simulated node's config: which part of the run's data it answers for."""
        return {"partition-id": node - 1}

    def set_run(self, run: object) -> None:
        """Nothing to set."""

    @property
    def run(self) -> Any:
        """No run object is needed."""
        return None

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Messages are made by their constructor."""
        return Message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Strategies use send_and_receive."""
        raise TypeError("an InProcessGrid answers send_and_receive only")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Strategies use send_and_receive."""
        raise TypeError("an InProcessGrid answers send_and_receive only")

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Every request is answered in turn."""
        return [self.answer(message) for message in messages]

    def answer(self, message: Message) -> Message:
        """The client's reply, as if it came from the node that is asked."""
        node = message.metadata.dst_node_id
        message.metadata.__dict__["_message_id"] = str(uuid4())
        config = dict(self.configs.get(node) or self.config(node))
        TaskIdentity.node_id = node
        try:
            return self.client(message, Context(1, node, config, RecordDict(), {}))
        finally:
            TaskIdentity.node_id = 1
