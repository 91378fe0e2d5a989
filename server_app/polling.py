"""A Flower grid that looks for answers often at first, and notices a message that a node lost.

Flower's own looks every three seconds, which is half of a short round. And it waits out the
deadline for a SuperNode that took a message, died and was back before anybody looked: to Flower
that node never was away.
"""

import time
from collections.abc import Iterable
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from strategies.messages import HELLO

SHORTEST, LONGEST = 0.2, 3.0  # seconds between two looks
SHARE = 0.1  # of the time already waited
PATIENCE = 120.0  # seconds without an answer until a node is sent a second message


class PollingGrid(Grid):
    """Another grid, but for how it waits.

    A SuperNode works on one message at a time and in their order. So one that has been silent for
    `patience` seconds is sent a greeting: as long as it works on the first message, this one waits;
    if it answers this one and not the first, it has lost the first. The nodes of a simulation have
    no such order, and do not die alone: None for them.
    """

    def __init__(self, grid: Grid, patience: float | None = PATIENCE) -> None:
        self.grid, self.patience = grid, patience

    def set_run(self, run: Any) -> None:
        """As the other grid."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        """As the other grid."""
        return self.grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """As the other grid."""
        return self.grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """As the other grid."""
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the other grid."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the other grid."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send, and return the answers when all are there or `timeout` seconds have passed.

        A lost message has an error for its answer.
        """
        started = time.monotonic()
        waiting = self._sent(messages)
        greeted: dict[str, str] = {}  # greeting → the message that it came after
        answers: list[Message] = []
        lost: set[str] = set()
        while waiting:
            pulled = self.pull_messages([*waiting, *greeted])
            came = {answer.metadata.reply_to_message_id: answer for answer in pulled}
            answers += [answer for key, answer in came.items() if key in waiting]
            # Found at the last look: an answer that came beside the greeting's has been seen now.
            answers += [_error(waiting[key]) for key in lost & waiting.keys() - came.keys()]
            over = lost | came.keys()
            waiting = {key: message for key, message in waiting.items() if key not in over}
            lost = {greeted.pop(key) for key in came if key in greeted}
            waited = time.monotonic() - started
            if not waiting or (timeout is not None and waited >= timeout):
                break
            if not greeted and not lost and self.patience is not None and waited > self.patience:
                greeted = {g: key for key, m in waiting.items() for g in self._sent([_greeting(m)])}
            time.sleep(pause(waited, timeout))
        return answers

    def _sent(self, messages: Iterable[Message]) -> dict[str, Message]:
        """Send; the messages that could be sent, by their ids."""
        tried = list(messages)
        ids = self.push_messages(tried)
        return {key: message for key, message in zip(ids, tried, strict=False) if key is not None}


def _greeting(message: Message) -> Message:
    """Who are you: to the node that a message went to. Any answer will do."""
    content = RecordDict({"request": message.content.config_records["request"]})
    return Message(content, message.metadata.dst_node_id, HELLO, group_id=message.metadata.group_id)


def _error(message: Message) -> Message:
    reason = "The node was started anew while it worked on the message."
    return Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=message)


def pause(waited: float, timeout: float | None) -> float:
    """Seconds until the next look: a tenth of the wait so far, and never past the deadline."""
    usual = min(max(SHARE * waited, SHORTEST), LONGEST)
    return usual if timeout is None else min(usual, max(timeout - waited, 0.0))
