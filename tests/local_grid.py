"""A Flower grid without processes: requests go straight to the client's handlers.

The same messages, records and refusals as in a simulation, in milliseconds. `script` may lose,
delay, repeat or falsify answers.
"""

from collections.abc import Callable, Iterable
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from client_app import handlers

Script = Callable[[Message, Message], list[Message]]  # (request, reply) → what arrives


class LocalGrid(Grid):
    """`nodes` in-process nodes; node ids are 1, 2, …; node_config by node id."""

    def __init__(
        self,
        nodes: int = 2,
        configs: dict[int, dict[str, str | int]] | None = None,
        script: Script | None = None,
    ) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.nodes = list(range(1, nodes + 1))
        self.configs = configs or {}
        self.script = script or (lambda request, reply: [reply])
        self.sent: list[Message] = []

    def set_run(self, run: object) -> None:
        """Nothing to set."""

    @property
    def run(self) -> object:
        """No run object is needed."""
        return None

    def create_message(self, *args: object, **kwargs: object) -> Message:
        """Messages are made by their constructor."""
        return Message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """The connected nodes."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Only send_and_receive is used."""
        raise TypeError("LocalGrid answers send_and_receive only")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Only send_and_receive is used."""
        raise TypeError("LocalGrid answers send_and_receive only")

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Every request is answered in turn, through the script."""
        arrived: list[Message] = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            self.sent.append(message)
            node = message.metadata.dst_node_id
            arrived += self.script(message, self.answer(message, node))
        return arrived

    def answer(self, message: Message, node: int) -> Message:
        """The client's reply, as if it came from this node."""
        config = self.configs.get(node, {"partition-id": node - 1})
        context = Context(1, node, dict(config), RecordDict(), {})
        TaskIdentity.node_id = node
        reply = handlers.answer(message, context)
        TaskIdentity.node_id = 1
        return reply


