"""Waiting for answers: soon after they come, not past the deadline, and no other answers."""

import time
from collections.abc import Iterable

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from local_grid import LocalGrid

from server_app.polling import LONGEST, SHORTEST, PollingGrid, pause
from strategies.messages import HELLO


class Slow(LocalGrid):
    """Answers each message so many seconds after it was sent; never, for infinity."""

    greets_after = 0.0

    def __init__(self, *delays: float) -> None:
        super().__init__()
        self.delays, self.due, self.looks = delays, dict[str, tuple[float, Message]](), 0
        self.asked: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = []
        for message in messages:
            greeting = message.metadata.message_type == HELLO
            delay = self.greets_after if greeting else self.delays[len(self.asked)]
            message.metadata.__dict__["_message_id"] = sent_as = str(len(self.asked))
            self.asked.append(message)
            sent.append(sent_as)
            answer = Message(RecordDict(), reply_to=message)
            self.due[sent_as] = (time.monotonic() + delay, answer)
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.looks += 1
        now = time.monotonic()
        ready = [key for key in message_ids if key in self.due and self.due[key][0] <= now]
        return [self.due.pop(key)[1] for key in ready]


def train_message() -> Message:
    return Message(RecordDict({"request": ConfigRecord({"client": 0})}), 1, "train")


def asked(grid: Slow, timeout: float | None = None) -> tuple[list[str], float]:
    messages = [train_message() for _ in grid.delays]
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


def test_a_node_that_answers_a_later_message_has_lost_the_first() -> None:
    # Prepare: the second of two nodes takes its message, dies, and is back before anybody looks.
    grid = Slow(0.0, float("inf"))

    # Execute
    started = time.monotonic()
    answers = list(
        PollingGrid(grid, patience=0.5).send_and_receive(
            [train_message(), train_message()], timeout=60
        )
    )

    # Assert: an error at once, not the deadline; the node that had answered was left in peace.
    assert time.monotonic() - started < 5
    assert [(a.metadata.reply_to_message_id, a.has_error()) for a in answers] == [
        ("0", False),
        ("1", True),
    ]
    assert [m.metadata.message_type for m in grid.asked] == ["train", "train", HELLO]


def test_a_node_that_still_works_is_not_given_up() -> None:
    class Busy(Slow):
        greets_after = 1.0  # its turn comes when the first is answered

    grid = Busy(1.5)
    answers = list(PollingGrid(grid, patience=0.4).send_and_receive([train_message()], timeout=60))

    assert [answer.has_error() for answer in answers] == [False]
    assert len(grid.asked) == 2


def test_an_answer_that_comes_beside_that_to_the_greeting_counts() -> None:
    class Late(Slow):
        """Shows the answer to the greeting one look before the other."""

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            pulled = list(super().pull_messages(message_ids))
            if any(answer.metadata.reply_to_message_id == "1" for answer in pulled):
                self.due["0"] = (0.0, Message(RecordDict(), reply_to=self.asked[0]))
            return pulled

    answers = list(
        PollingGrid(Late(float("inf")), patience=0.3).send_and_receive(
            [train_message()], timeout=60
        )
    )

    assert [answer.has_error() for answer in answers] == [False]


def test_nodes_of_a_simulation_are_not_greeted() -> None:
    grid = Slow(1.0)
    messages = [train_message()]

    assert len(list(PollingGrid(grid, patience=None).send_and_receive(messages))) == 1
    assert len(grid.asked) == 1


@pytest.mark.parametrize(
    ("waited", "timeout", "seconds"),
    [(0.0, None, SHORTEST), (10.0, None, 1.0), (1e4, None, LONGEST), (9.9, 10.0, 0.1)],
)
def test_the_longer_it_takes_the_less_often_it_is_looked(
    waited: float, timeout: float | None, seconds: float
) -> None:
    assert pause(waited, timeout) == pytest.approx(seconds)
