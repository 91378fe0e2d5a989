"""A client that trains privately: its plan, its ledger, its secret random numbers.

The order is what makes the promise hold: reserve in the ledger, run the mechanism, keep the answer
on the disk, enter that it may leave, and only then give it away.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from fedtuners.config import Config
from fedtuners.privacy.accounting import Event, PrivacyError
from fedtuners.privacy.dpsgd import Noise, private_train
from fedtuners.privacy.ledger import Budget, Ledger
from fedtuners.privacy.plan import Plan, make_plan
from fedtuners.privacy.randomness import PrivateRandom, Randomness, SecureRandom
from fedtuners.privacy.sampling import Draw, Units, poisson_draws, units_of
from fedtuners.privacy.sketches import private_core, private_range
from fedtuners.tuned import TunedModel

State = dict[str, Tensor]
Report = dict[str, int | float]
_fingerprints: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


@dataclass(frozen=True)
class PrivateClient:
    """One client's rows and what may be learnt of them.

    Attributes:
        config: as this site executes it.
        asked: as the run has it. By this, with what is installed, a question is known again.
        tuned: the loaded model.
        rows: the client's training rows.
        source: the rows that the ledger's book is of. For a site's own these are all of its file,
            before a run's settings name, choose or cut them: another cut is no other budget.
        folder: the site's state.
        book: what the budget is for besides the rows: a run, where the rows are a part of the
            run's own data (a simulation); empty for a site's own rows, which have one budget for
            all runs.
        limit: the site's own ε; 0: the run's.
    """

    config: Config
    asked: Config
    tuned: TunedModel
    rows: Any
    source: Any
    folder: Path
    book: str = ""
    limit: float = 0.0

    def train(self, question: Sequence[str]) -> tuple[State, Report]:
        """One round of DP-SGD from what is installed; (trained tensors, what may be reported).

        `question` says, with the installed tensors and the settings, which round this is.
        """

        def run() -> State:
            event, settings = self.plan.round, self.config.train.resolved(self.plan.units)
            draws = self._draws(event, settings.micro_batch or settings.batch_size)
            private_train(
                *(self.tuned.model, self.tuned.task, draws, settings),
                self._noise(event),
                self._randomness(),
            )
            return self.tuned.state()

        return self._release(self.plan.round, ["train", *question, *self._installed()], run)

    def sketch_range(self, width: int, question: Sequence[str]) -> tuple[State, Report]:
        """The first sketch of the base model's gradient; see fedtuners.privacy.sketches."""

        def run(draw: Draw, noise: Noise) -> State:
            return private_range(
                *(self.tuned.model, self.tuned.task, draw, self.tuned.shapes, width),
                *(self.config.seed, noise, self._randomness()),
            )

        return self._sketch(run, ["range", str(width), *question])

    def sketch_core(
        self, bases: Mapping[str, Tensor], question: Sequence[str]
    ) -> tuple[State, Report]:
        """The second sketch, in the server's bases."""

        def run(draw: Draw, noise: Noise) -> State:
            return private_core(
                *(self.tuned.model, self.tuned.task, draw, bases, self.tuned.shapes),
                *(noise, self._randomness()),
            )

        return self._sketch(run, ["core", *question, *_hashes(bases)])

    def report(self) -> Report:
        """What the client says of its privacy: ε of everything so far, δ, σ, q, N."""
        events, plan = self.ledger.events(), self.plan
        return {
            "epsilon": self.budget.spent(events),
            "delta": plan.delta,
            "noise_multiplier": plan.round.noise_multiplier,
            "sample_rate": plan.round.sample_rate,
            "protected_units": plan.units,
        }

    @cached_property
    def plan(self) -> Plan:
        """See fedtuners.privacy.plan; raises what it raises when privacy cannot be had."""
        plan, whole = make_plan(self.config, len(self.units)), len(self.source)
        if self.config.privacy.unit is None and plan.delta >= 1 / whole:
            raise PrivacyError(
                f"privacy.delta={plan.delta:.3g} must be below 1/{whole}, one over the rows of "
                "this site before data.train_rows cuts them: set it lower"
            )
        return plan

    @cached_property
    def units(self) -> Units:
        """The rows of each protected unit."""
        return units_of(self.rows, self.config.privacy.unit)

    @cached_property
    def budget(self) -> Budget:
        """The smaller of the run's ε and the site's."""
        privacy = self.config.privacy
        limits = [limit for limit in (privacy.epsilon, self.limit or None) if limit is not None]
        smallest = min(limits, default=None)
        return Budget(smallest, self.plan.delta, privacy.accountant, privacy.unit)

    @cached_property
    def ledger(self) -> Ledger:
        """The book of these rows."""
        data = hashlib.sha256(f"{fingerprint(self.source)}/{self.book}".encode()).hexdigest()[:32]
        return Ledger(self.folder / "privacy", self.folder / "privacy-marks", data)

    def _release(
        self, event: Event, question: Iterable[str], run: Callable[[], State]
    ) -> tuple[State, Report]:
        """The answer to a question: the one that was given before, or a new one, paid for."""
        request = self._digest(question)
        with self.ledger.alone():
            answer = self.ledger.answer(request)
            if answer is None:
                self.ledger.reserve(event, request, self.budget)
                answer = run()
                self.ledger.answered(request, answer)
        return answer, self.report()

    def _sketch(
        self, run: Callable[[Draw, Noise], State], question: Sequence[str]
    ) -> tuple[State, Report]:
        event = self.plan.sketch
        if event is None:
            raise ValueError("a sketch was asked for that the run's plan does not have")
        part_rows = self.config.train.micro_batch or self.config.start.batch_size

        def draw_and_run() -> State:
            (draw,) = self._draws(event, part_rows)
            return run(draw, self._noise(event))

        return self._release(event, question, draw_and_run)

    def _draws(self, event: Event, part_rows: int) -> Iterable[Draw]:
        encoded = self.tuned.task.encode(self.rows, self.tuned.tokenizer)
        return poisson_draws(
            *(encoded, self.units, self.tuned.pad, event.sample_rate, event.steps, part_rows),
            self._randomness(),
        )

    def _noise(self, event: Event) -> Noise:
        expected = event.sample_rate * len(self.units)
        return Noise(event.noise_multiplier, self.config.privacy.clip, expected)

    def _randomness(self) -> Randomness:
        return SecureRandom() if self.config.privacy.secure else PrivateRandom()

    def _installed(self) -> list[str]:
        return _hashes(self.tuned.state())

    def _digest(self, question: Iterable[str]) -> str:
        """A name for a question: equal ones have one answer."""
        asked = self.asked
        training = replace(asked.train, micro_batch=None)  # memory alone: it may change on the way
        sections = (asked.model, asked.data, training, asked.start, asked.privacy)
        settings = [asdict(section) for section in sections]
        settings += [dict(asked.adapter), dict(asked.strategy)]
        text = json.dumps([*question, settings, asked.seed], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(rows: Any) -> str:
    """A hash of rows that their order does not change; taken once for a data set in memory."""
    if rows not in _fingerprints:
        hashes = sorted(
            hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).digest()
            for row in rows
        )
        _fingerprints[rows] = hashlib.sha256(b"".join(hashes)).hexdigest()
    return _fingerprints[rows]


def _hashes(state: Mapping[str, Tensor]) -> list[str]:
    """A hash of each tensor with its name, in the order of the names."""
    return [
        hashlib.sha256(
            name.encode() + state[name].contiguous().view(-1).numpy().tobytes()
        ).hexdigest()
        for name in sorted(state)
    ]
