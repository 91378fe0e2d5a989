"""A client's own book of what its rows have cost, which no crash and no restart makes forget.

One line of JSON for each mechanism, written and synced *before* it runs: what is killed midway
counts as spent. Every line holds the hash of the one before it, and a mark elsewhere on the disk
holds the number and hash of the last, so that a line that was changed, a shortened book and an
older copy of it are seen. Who replaces book and mark together by older copies is not seen.

A release that is asked for again (a server that went on from its checkpoint) costs nothing anew:
an answer that was finished is repeated from the disk word for word, and one that was not finished
never left, so its entry serves the second attempt.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedtuners.privacy.accounting import Event, PrivacyError, epsilon

State = dict[str, Tensor]
FIRST = "0" * 64  # what the first line names as its predecessor
SLACK = 1e-6  # rounding of an accountant when the plan's cost is exactly the budget


class LedgerError(PrivacyError):
    """A ledger that cannot be trusted."""


class BudgetError(PrivacyError):
    """A mechanism that the remaining budget does not pay for."""


@dataclass(frozen=True)
class Budget:
    """How much may be spent: ε (None: without limit) at δ, by an accountant, and what is protected.

    `unit` is the column whose equal values are protected together; None: each row.
    """

    epsilon: float | None
    delta: float
    accountant: str = "prv"
    unit: str | None = None

    def spent(self, events: list[Event]) -> float:
        """The ε of these events."""
        return epsilon(events, self.delta, self.accountant)


class Ledger:
    """The book of one data set, in `folder`; its mark lies in `marks`, a folder of its own.

    Parameters
    ----------
    folder : Path
        Of all books.
    marks : Path
        Of all marks.
    data : str
        The fingerprint of the rows, a file name.
    """

    def __init__(self, folder: Path, marks: Path, data: str) -> None:
        self.data = data
        self.folder, self.path = folder / data, folder / data / "ledger.jsonl"
        self.mark = marks / f"{data}.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        marks.mkdir(parents=True, exist_ok=True)

    def events(self) -> list[Event]:
        """Everything that was spent, in order. Raises LedgerError."""
        with self._locked():
            return _events(self._entries())

    def reserve(self, event: Event, request: str, budget: Budget) -> None:
        """Enter a mechanism before it runs, unless an unanswered entry of this request stands.

        Raises
        ------
        BudgetError
            When all that was spent and this exceed the budget, or what was spent protected
            another unit; nothing is entered then.
        LedgerError
            When the book is not what was written.
        """
        with self._locked():
            entries = self._entries()
            _check_unit(entries, budget.unit)
            entered = {"kind": "spent", "request": request, "unit": budget.unit, **asdict(event)}
            finished = {e["request"] for e in entries if e["kind"] == "answered"}
            if request not in finished and any(entered.items() <= e.items() for e in entries):
                return
            _check_budget(_events(entries), event, budget)
            self._append(entries, entered)

    def answered(self, request: str, answer: State) -> None:
        """Keep a finished answer, and enter that it may have left."""
        with self._locked():
            part = self._answer.with_suffix(".part")
            save_file(answer, part, metadata={"request": request})
            _sync(part)
            os.replace(part, self._answer)
            _sync(self.folder)
            self._append(self._entries(), {"kind": "answered", "request": request})

    def answer(self, request: str) -> State | None:
        """The last finished answer, if it was to this request; it is then entered as such."""
        with self._locked():
            found = self._read_answer(request)
            if found is not None:
                entries = self._entries()
                kinds = [entry["kind"] for entry in entries if entry["request"] == request]
                if kinds.count("answered") < kinds.count("spent"):  # killed between the two writes
                    self._append(entries, {"kind": "answered", "request": request})
            return found

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within it nobody else answers from these rows: one entry pays for one answer."""
        with (self.folder / "answering").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _read_answer(self, request: str) -> State | None:
        try:
            with safe_open(self._answer, framework="pt") as file:
                if (file.metadata() or {}).get("request") != request:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None

    @property
    def _answer(self) -> Path:
        return self.folder / "answer.safetensors"

    def _entries(self) -> list[dict[str, Any]]:
        """The verified lines; a last one that was cut off while it was written is removed."""
        text = self.path.read_bytes() if self.path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        entries = [self._parsed(line) for line in whole.splitlines()]
        previous = FIRST
        for number, entry in enumerate(entries):
            if entry != _sealed(number, previous, self.data, entry.get("entry", {})):
                raise self._broken(f"line {number + 1} is not what was written")
            previous = entry["hash"]
        self._check_mark(entries)
        if len(whole) < len(text):
            os.truncate(self.path, len(whole))
        return [entry["entry"] for entry in entries]

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            parsed = json.loads(line)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            raise self._broken("a line is not what was written")
        return parsed

    def _check_mark(self, entries: list[dict[str, Any]]) -> None:
        if not self.mark.exists():
            # The very first line's mark may have been lost to a kill between the two writes.
            if len(entries) > 1:
                raise self._broken(f"its mark {self.mark} is gone")
            return
        mark = json.loads(self.mark.read_text(encoding="utf-8"))
        if len(entries) < mark["lines"]:
            raise self._broken(f"it has {len(entries)} lines and had {mark['lines']}")
        if mark["lines"] and entries[mark["lines"] - 1]["hash"] != mark["hash"]:
            raise self._broken("its mark belongs to another history")

    def _append(self, entries: list[dict[str, Any]], entry: dict[str, Any]) -> None:
        previous = self._last_hash() if entries else FIRST
        line = _sealed(len(entries), previous, self.data, entry)
        with self.path.open("ab") as file:
            file.write(_canonical(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        _sync(self.folder)
        part = self.mark.with_suffix(".part")
        part.write_bytes(_canonical({"lines": len(entries) + 1, "hash": line["hash"]}))
        _sync(part)
        os.replace(part, self.mark)
        _sync(self.mark.parent)

    def _last_hash(self) -> str:
        return str(json.loads(self.path.read_bytes().splitlines()[-1])["hash"])

    def _broken(self, why: str) -> LedgerError:
        return LedgerError(
            f"the privacy ledger {self.path} was altered or rolled back ({why}): what these rows "
            "have cost is unknown, so they are not trained on; restore the ledger and its mark"
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the book, among all processes of this machine."""
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _check_unit(entries: list[dict[str, Any]], unit: str | None) -> None:
    for entry in entries:
        if entry["kind"] == "spent" and entry["unit"] != unit:
            raise BudgetError(
                f"these rows have spent of their budget with privacy.unit={entry['unit'] or 'null'}"
                f", and what {unit or 'null'} would spend does not add to it: keep the unit"
            )


def _check_budget(events: list[Event], event: Event, budget: Budget) -> None:
    if budget.epsilon is None:
        return
    after = budget.spent([*events, event])
    if after > budget.epsilon + SLACK:
        before = budget.spent(events)
        raise BudgetError(
            f"privacy budget spent: these rows have cost ε {before:.3f} of {budget.epsilon} at "
            f"δ {budget.delta:.2e}, and this would make it {after:.3f}; raise privacy.epsilon (and "
            "the site's own limit) or stop here"
        )


def _events(entries: list[dict[str, Any]]) -> list[Event]:
    return [
        Event(entry["noise_multiplier"], entry["sample_rate"], entry["steps"])
        for entry in entries
        if entry["kind"] == "spent"
    ]


def _sealed(number: int, previous: str, data: str, entry: dict[str, Any]) -> dict[str, Any]:
    """A line: its number, the data set, the hash of the line before, and its own."""
    line = {"number": number, "data": data, "previous": previous, "entry": entry}
    return line | {"hash": hashlib.sha256(_canonical(line)).hexdigest()}


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
