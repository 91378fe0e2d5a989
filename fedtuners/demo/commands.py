"""Assistant commands and the calls they stand for: the generated data of the embedded demo.

One row turns a spoken command into a structured call::

    kindly hold a parking spot in lorano until 7 pm  ->  hold_spot(lot=lorano, until=7 pm)

The *old* intents, on which the demo's model is pretrained, are combined from the domains of
``lexicon.py``; the *new* ones, which a federation adapts it to, are written out there, with names,
argument keys and phrasings of their own. Slot values are random; which of them belong to training
and which to evaluation is decided by a checksum of the value, so the two never meet.
"""

import random
import zlib
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal

from fedtuners.demo import lexicon

Split = Literal["pretrain", "train", "test", "old"]

KINDS = ("name", "count", "clock", "day", "span", "code")
OMIT_SLOT = 0.15
LITERAL = 0.5


@dataclass(frozen=True)
class Slot:
    """One argument of a call: its key, the kind of its value, and the clauses that state it."""

    key: str
    kind: str
    clauses: tuple[str, ...]


@dataclass(frozen=True)
class Intent:
    """One callable function: its name, the phrases that ask for it, and its arguments."""

    name: str
    actions: tuple[str, ...]
    slots: tuple[Slot, ...]


def rows(split: Split, count: int, seed: int) -> list[dict[str, str]]:
    """Generate ``count`` rows with the keys ``instruction``, ``output`` and ``intent``.

    ``pretrain`` and ``old`` draw on the old intents, ``train`` and ``test`` on the new ones;
    ``old`` and ``test`` use only slot values that the other two never do. Intents take turns, so
    that each has its share. The same arguments give the same rows on every machine.

    Raises:
        ValueError: if ``split`` is not one of the four.
    """
    intents = {"pretrain": OLD, "old": OLD, "train": NEW, "test": NEW}.get(split)
    if intents is None:
        raise ValueError(f"Unknown split {split!r}; choose pretrain, train, test or old.")
    rng = random.Random(f"{split} {seed}")
    turns = rng.sample(intents, len(intents))
    held_out = split in ("test", "old")
    literal = LITERAL if split == "pretrain" else 0.0
    return [
        _row(_literal_intent(rng) if rng.random() < literal else turn, held_out, rng)
        for turn in islice(cycle(turns), count)
    ]


def is_held_out(value: str) -> bool:
    """Whether a slot value is kept for evaluation: about one in five are."""
    return zlib.crc32(value.encode()) % 5 == 0


def _row(intent: Intent, held_out: bool, rng: random.Random) -> dict[str, str]:
    slots = list(intent.slots)
    if len(slots) > 2 and rng.random() < OMIT_SLOT:
        slots.remove(rng.choice(slots))
    rng.shuffle(slots)
    values = [_value(slot.kind, held_out, rng) for slot in slots]
    clauses = [rng.choice(s.clauses).format(v) for s, v in zip(slots, values, strict=True)]
    words = [rng.choice(lexicon.OPENINGS), rng.choice(intent.actions), *clauses]
    instruction = " ".join([*words, rng.choice(lexicon.ENDINGS)]).strip()
    arguments = ", ".join(f"{slot.key}={value}" for slot, value in zip(slots, values, strict=True))
    return {
        "instruction": instruction,
        "output": f"{intent.name}({arguments})",
        "intent": intent.name,
    }


def _value(kind: str, held_out: bool, rng: random.Random) -> str:
    """Draw values of this kind until one belongs to the wanted side."""
    while is_held_out(value := _any_value(kind, rng)) != held_out:
        pass
    return value


def _any_value(kind: str, rng: random.Random) -> str:
    match kind:
        case "name":
            return _syllable(rng) + _syllable(rng)
        case "title":
            return " ".join(rng.sample(lexicon.WORDS, rng.choice((1, 2))))
        case "count":
            return str(rng.randrange(2, 100))
        case "clock":
            minutes = rng.choice(("", f":{rng.randrange(60):02}"))
            return f"{rng.randrange(1, 13)}{minutes} {rng.choice(('am', 'pm'))}"
        case "day":
            return f"{rng.choice(lexicon.MONTHS)} {rng.randrange(1, 29)}"
        case "span":
            return f"{rng.randrange(2, 60)} {rng.choice(('minutes', 'hours', 'days'))}"
        case "code":
            return f"{rng.choice(lexicon.CONSONANTS)}{rng.randrange(10, 1000)}"
    raise ValueError(f"Unknown kind of slot {kind!r}.")


def _syllable(rng: random.Random) -> str:
    return rng.choice(lexicon.CONSONANTS) + rng.choice("aeiou")


def _old_intents() -> tuple[Intent, ...]:
    """One intent for each group of verbs and each group of nouns of a domain.

    Which of the like words names the function, in which order, and with which keys, is drawn once:
    the name has to be learnt, the phrasing does not give it away.
    """
    rng = random.Random("old intents")
    return tuple(
        _old_intent(verbs, nouns, domain.roles, rng)
        for domain in lexicon.DOMAINS
        for verbs in domain.verbs
        for nouns in domain.nouns
    )


def _old_intent(
    verbs: tuple[str, ...], nouns: tuple[str, ...], roles: tuple[str, ...], rng: random.Random
) -> Intent:
    name = [rng.choice(verbs).replace(" ", "_"), rng.choice(nouns)]
    rng.shuffle(name)
    actions = tuple(
        rng.choice(lexicon.ACTIONS).format(rng.choice(verbs), rng.choice(nouns)) for _ in range(5)
    )
    chosen = rng.sample(roles, rng.choice((2, 3, 3)))
    return Intent("_".join(name), actions, tuple(_old_slot(role, rng) for role in chosen))


def _old_slot(role: str, rng: random.Random) -> Slot:
    kind, keys, clauses = lexicon.ROLES[role]
    return Slot(rng.choice(keys), kind, tuple(rng.sample(clauses, min(3, len(clauses)))))


def _literal_intent(rng: random.Random) -> Intent:
    """An intent of random everyday words that are their own names and keys, for one row only."""
    verb, noun, *keys = rng.sample(lexicon.WORDS, rng.choice((4, 5)))
    action = rng.choice(lexicon.ACTIONS).format(verb, noun)
    slots = tuple(
        Slot(key, rng.choice(KINDS), (rng.choice(lexicon.LITERAL).format(key),)) for key in keys
    )
    return Intent(f"{verb}_{noun}", (action,), slots)


def _new_intents() -> tuple[Intent, ...]:
    return tuple(
        Intent(name, actions, tuple(Slot(*slot) for slot in slots))
        for name, (actions, slots) in lexicon.NEW.items()
    )


OLD = _old_intents()
NEW = _new_intents()
