"""A Flower grid without processes: requests go straight to the ClientApp that Flower loads.

The same messages, records and refusals as in a simulation, in milliseconds. `script` may lose,
delay, repeat or falsify answers; `client` may be another client than ours, such as a `puppet`,
which answers without a model.
"""

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import ArrayRecord, Context, Message, RecordDict

from client_app.app import app
from server_app.local import InProcessGrid
from strategies.algebra import State
from strategies.messages import Reply, Request, read_request, text_hash
from strategies.packing import manifest, pack

Script = Callable[[Message, Message], list[Message]]  # (request, reply) → what arrives
Client = Callable[[Message, Context], Message]


class LocalGrid(InProcessGrid):
    """`nodes` in-process nodes; node ids are 1, 2, …; node_config by node id."""

    def __init__(
        self,
        nodes: int = 2,
        configs: dict[int, dict[str, str | int]] | None = None,
        script: Script | None = None,
        client: Client = app,
    ) -> None:
        super().__init__(nodes, client)
        self.configs |= configs or {}
        self.script = script or (lambda request, reply: [reply])
        self.sent: list[Message] = []
        self.replies: list[Message] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Every request is answered in turn, through the script."""
        arrived: list[Message] = []
        for message in messages:
            self.sent.append(message)
            reply = self.answer(message)
            self.replies.append(reply)
            arrived += self.script(message, reply)
        return arrived


def puppet(answer: Callable[[Request], Reply]) -> Client:
    """A client that answers by a function of the request alone."""

    def client(message: Message, context: Context) -> Message:
        return Message(answer(read_request(message.content)).content(), reply_to=message)

    return client


def trained(request: Request, state: State, examples: int = 1, **fields: Any) -> Reply:
    """The good reply of a client that trained `state` on so many examples."""
    reply = Reply(request.client, request.round)
    reply.arrays = pack(state)
    reply.extra = {"manifest": text_hash(manifest(state))}
    reply.metrics = {"loss": 1.0, "num-examples": examples}
    for name, value in fields.items():
        setattr(reply, name, value)
    return reply


def falsified(reply: Message, **fields: Any) -> Message:
    """The same answer with other fields in its record, as a faulty site may send it."""
    content = RecordDict(dict(reply.content.items()))
    record = content.config_records["reply"].copy()
    for name, value in fields.items():
        if isinstance(value, ArrayRecord):
            content[name] = value
        else:
            record[name] = value
    content["reply"] = record
    changed = Message.__new__(Message)
    changed.__dict__.update(reply.__dict__)
    changed.__dict__["_content"] = content
    return changed
