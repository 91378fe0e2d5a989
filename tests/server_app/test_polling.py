"""Waiting for answers: soon after they come, not past the deadline, and no other answers."""

import time
from collections.abc import Iterable

import pytest
from flwr.app import Message, RecordDict
from local_grid import LocalGrid

from server_app.polling import LONGEST, SHORTEST, PollingGrid, pause


class Slow(LocalGrid):
    """Answers each message so many seconds after it was sent; never, for infinity."""

    def __init__(self, *delays: float) -> None:
        super().__init__()
        self.delays, self.due, self.looks = delays, dict[str, tuple[float, Message]](), 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for number, (message, delay) in enumerate(zip(messages, self.delays, strict=True)):
            message.metadata.__dict__["_message_id"] = str(number)
            answer = Message(RecordDict(), reply_to=message)
            self.due[str(number)] = (time.monotonic() + delay, answer)
        return list(self.due)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.looks += 1
        now = time.monotonic()
        ready = [key for key in message_ids if key in self.due and self.due[key][0] <= now]
        return [self.due.pop(key)[1] for key in ready]


def asked(grid: Slow, timeout: float | None = None) -> tuple[list[str], float]:
    messages = [Message(RecordDict(), 1, "train") for _ in grid.delays]
    started = time.monotonic()
    answers = PollingGrid(grid).send_and_receive(messages, timeout=timeout)
    return [a.metadata.reply_to_message_id for a in answers], time.monotonic() - started


def test_answers_are_taken_as_they_come() -> None:
    answered, seconds = asked(Slow(0.5, 0.0, 0.3))

    assert answered == ["1", "2", "0"]
    assert 0.5 <= seconds < 3.0  # Flower's own first look is after three seconds


def test_an_answer_that_never_comes_costs_the_deadline_and_no_more() -> None:
    answered, seconds = asked(Slow(0.0, float("inf")), timeout=1.0)

    assert answered == ["0"]
    assert 1.0 <= seconds < 2.5


def test_nothing_asked_is_nothing_waited_for() -> None:
    grid = Slow()
    assert asked(grid)[0] == []
    assert grid.looks == 0


def test_a_message_that_could_not_be_sent_is_not_waited_for() -> None:
    class Full(Slow):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            first, _ = super().push_messages(messages)
            return [first, None]  # type: ignore[list-item]  # what Flower returns then

    assert asked(Full(0.0, 0.0))[0] == ["0"]


@pytest.mark.parametrize(
    ("waited", "timeout", "seconds"),
    [(0.0, None, SHORTEST), (10.0, None, 1.0), (1e4, None, LONGEST), (9.9, 10.0, 0.1)],
)
def test_the_longer_it_takes_the_less_often_it_is_looked(
    waited: float, timeout: float | None, seconds: float
) -> None:
    assert pause(waited, timeout) == pytest.approx(seconds)
