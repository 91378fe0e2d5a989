"""The ledger: what was spent stays spent, through kills, copies and edits."""

import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedtuners.privacy.accounting import Event
from fedtuners.privacy.ledger import Budget, BudgetError, Ledger, LedgerError

ROUND = Event(1.0, 0.1, 5)
BUDGET = Budget(None, 1e-4)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return reopened(tmp_path)


def reopened(home: Path) -> Ledger:
    return Ledger(home / "books", home / "marks", "rows")


def test_what_was_reserved_is_spent(ledger: Ledger, tmp_path: Path) -> None:
    ledger.reserve(ROUND, "first", BUDGET)
    ledger.reserve(ROUND, "second", BUDGET)
    assert reopened(tmp_path).events() == [ROUND, ROUND]


def test_the_budget_is_for_all_runs(tmp_path: Path) -> None:
    budget = Budget(3.0, 1e-4)
    taken = 0
    while budget.spent([ROUND] * (taken + 1)) <= 3.0:
        reopened(tmp_path).reserve(ROUND, f"round {taken}", budget)
        taken += 1
    with pytest.raises(BudgetError, match=r"privacy budget spent: .* raise privacy.epsilon"):
        reopened(tmp_path).reserve(ROUND, "one more", budget)
    events = reopened(tmp_path).events()
    assert len(events) == taken > 1


def test_a_killed_round_counts_and_its_second_attempt_does_not_count_twice(
    ledger: Ledger, tmp_path: Path
) -> None:
    process = os.fork()
    if process == 0:
        try:
            reopened(tmp_path).reserve(ROUND, "round 1", BUDGET)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)  # in the middle of training
    _, status = os.waitpid(process, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert ledger.events() == [ROUND]
    ledger.reserve(ROUND, "round 1", BUDGET)
    assert ledger.events() == [ROUND]
    ledger.reserve(ROUND, "round 2", BUDGET)
    assert ledger.events() == [ROUND, ROUND]


def test_an_answer_is_repeated_word_for_word_and_else_paid_for(
    ledger: Ledger, tmp_path: Path
) -> None:
    answer = {"core": torch.randn(3)}
    ledger.reserve(ROUND, "round 1", BUDGET)
    assert ledger.answer("round 1") is None
    ledger.answered("round 1", answer)
    again = reopened(tmp_path).answer("round 1")
    assert again is not None
    assert torch.equal(again["core"], answer["core"])
    assert reopened(tmp_path).answer("round 2") is None
    ledger.reserve(ROUND, "round 1", BUDGET)  # its answer was lost: another one is another cost
    assert ledger.events() == [ROUND, ROUND]


def test_an_answer_that_a_kill_left_unentered_is_entered_when_it_is_given_away(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    ledger.reserve(ROUND, "round 1", BUDGET)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_append", killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.answered("round 1", {"core": torch.ones(3)})
    assert reopened(tmp_path).answer("round 1") is not None
    ledger.reserve(ROUND, "round 2", BUDGET)
    ledger.answered("round 2", {"core": torch.ones(3)})
    ledger.reserve(ROUND, "round 1", BUDGET)  # its answer left, so another one is another cost
    assert ledger.events() == [ROUND] * 3


def test_rows_have_one_unit_of_privacy(ledger: Ledger) -> None:
    ledger.reserve(ROUND, "round 1", replace(BUDGET, unit="user"))
    with pytest.raises(BudgetError, match=r"with privacy\.unit=user, and what null would spend"):
        ledger.reserve(ROUND, "round 2", BUDGET)
    assert ledger.events() == [ROUND]


def test_two_processes_answer_from_the_same_rows_in_turn(ledger: Ledger, tmp_path: Path) -> None:
    entered = threading.Event()

    def other() -> None:
        with reopened(tmp_path).alone():
            entered.set()

    with ledger.alone():
        waiting = threading.Thread(target=other)
        waiting.start()
        assert not entered.wait(0.3)
    assert entered.wait(5)
    waiting.join()


def fill(home: Path, rounds: int = 3) -> Path:
    for number in range(rounds):
        reopened(home).reserve(ROUND, f"round {number}", BUDGET)
    return home / "books" / "rows" / "ledger.jsonl"


def test_tampering_is_refused(tmp_path: Path) -> None:
    book = fill(tmp_path)
    book.write_text(book.read_text().replace('"steps":5', '"steps":1', 1))
    with pytest.raises(LedgerError, match="line 1 is not what was written"):
        reopened(tmp_path).events()


def test_a_changed_line_with_a_fresh_hash_breaks_the_chain(tmp_path: Path) -> None:
    from fedtuners.privacy.ledger import _canonical, _sealed

    book = fill(tmp_path)
    lines = [json.loads(line) for line in book.read_text().splitlines()]
    lines[1]["entry"]["steps"] = 1
    lines[1] = _sealed(1, lines[1]["previous"], "rows", lines[1]["entry"])
    book.write_bytes(b"".join(_canonical(line) + b"\n" for line in lines))
    with pytest.raises(LedgerError, match="line 3 is not what was written"):
        reopened(tmp_path).events()


def test_a_shortened_or_older_book_is_refused(tmp_path: Path) -> None:
    book = fill(tmp_path)
    lines = book.read_bytes().splitlines(keepends=True)
    book.write_bytes(b"".join(lines[:2]))
    with pytest.raises(LedgerError, match="it has 2 lines and had 3"):
        reopened(tmp_path).reserve(ROUND, "next", BUDGET)
    book.unlink()
    with pytest.raises(LedgerError, match="it has 0 lines and had 3"):
        reopened(tmp_path).events()


def test_a_lost_mark_is_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    shutil.rmtree(tmp_path / "marks")
    with pytest.raises(LedgerError, match="is gone"):
        reopened(tmp_path).events()


def test_another_data_sets_book_is_refused(tmp_path: Path) -> None:
    book = fill(tmp_path)
    other = Ledger(tmp_path / "books", tmp_path / "marks", "others")
    shutil.copy(book, other.path)
    with pytest.raises(LedgerError):
        other.events()


def test_a_line_cut_off_while_it_was_written_is_dropped(tmp_path: Path) -> None:
    book = fill(tmp_path)
    with book.open("ab") as file:
        file.write(b'{"number":3,"da')
    assert len(reopened(tmp_path).events()) == 3
    reopened(tmp_path).reserve(ROUND, "next", BUDGET)
    assert len(reopened(tmp_path).events()) == 4


def test_a_kill_between_book_and_mark_is_no_tampering(tmp_path: Path) -> None:
    fill(tmp_path, rounds=2)
    mark = (tmp_path / "marks" / "rows.json").read_bytes()
    fill(tmp_path, rounds=3)
    (tmp_path / "marks" / "rows.json").write_bytes(mark)
    assert len(reopened(tmp_path).events()) == 3
