"""A Flower grid whose answers are looked for often at first, and seldom in a long round.

Flower's own looks every three seconds, which is half of a short round.
"""

import time
from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

SHORTEST, LONGEST = 0.2, 3.0  # seconds between two looks
SHARE = 0.1  # of the time already waited


class PollingGrid(Grid):
    """Another grid, but for how it waits."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

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
        """Send, and return the answers when all are there or `timeout` seconds have passed."""
        started = time.monotonic()
        waiting = {sent for sent in self.push_messages(messages) if sent is not None}
        answers: list[Message] = []
        while waiting:
            came = list(self.pull_messages(waiting))
            answers += came
            waiting -= {answer.metadata.reply_to_message_id for answer in came}
            waited = time.monotonic() - started
            if not waiting or (timeout is not None and waited >= timeout):
                break
            time.sleep(pause(waited, timeout))
        return answers


def pause(waited: float, timeout: float | None) -> float:
    """Seconds until the next look: a tenth of the wait so far, and never past the deadline."""
    usual = min(max(SHARE * waited, SHORTEST), LONGEST)
    return usual if timeout is None else min(usual, max(timeout - waited, 0.0))
