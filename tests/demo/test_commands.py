"""The generator of the demo: determinism, disjoint slot values, intents kept apart, valid calls."""

import re

import pytest

from fedtuners.demo import lexicon, rows
from fedtuners.demo.commands import NEW, OLD, Intent, Split, is_held_out

SPLITS: tuple[Split, ...] = ("pretrain", "train", "test", "old")


GOLDEN = (
    "hold that cut nov 21 unlock its coffee is 61 aug 7 its thanks",
    "hold_cut(unlock=nov 21, coffee=61, its=aug 7)",
)


def _arguments(output: str) -> dict[str, str]:
    call = re.fullmatch(r"[a-z_]+\((.*)\)", output)
    assert call, output
    pairs = [argument.split("=") for argument in call[1].split(", ")]
    assert all(len(pair) == 2 for pair in pairs), output
    return dict(pairs)


def _values(split: Split, count: int = 1500) -> set[str]:
    return {v for row in rows(split, count, 0) for v in _arguments(row["output"]).values()}


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_arguments_give_the_same_rows(split: Split) -> None:
    assert rows(split, 50, 3) == rows(split, 50, 3)
    assert rows(split, 50, 3) != rows(split, 50, 4)


def test_rows_are_these() -> None:
    """A golden value: the committed weights were trained on exactly this generator."""
    row = rows("pretrain", 256, 0)[-1]

    assert (row["instruction"], row["output"]) == GOLDEN


@pytest.mark.parametrize("split", SPLITS)
def test_each_output_is_a_call_whose_values_the_command_states(split: Split) -> None:
    for row in rows(split, 400, 1):
        assert row["output"].startswith(row["intent"] + "(")
        for value in _arguments(row["output"]).values():
            assert re.search(rf"\b{value}\b", row["instruction"]), row


def test_values_of_evaluation_are_never_trained_on() -> None:
    trained = _values("train") | _values("pretrain")
    evaluated = _values("test") | _values("old")

    assert not trained & evaluated
    assert all(map(is_held_out, evaluated))
    assert not any(map(is_held_out, trained))


def test_new_intents_share_no_name_key_or_action_with_the_old() -> None:
    def keys(intents: tuple[Intent, ...]) -> set[str]:
        return {slot.key for intent in intents for slot in intent.slots}

    def clauses(intents: tuple[Intent, ...]) -> set[str]:
        return {c for intent in intents for slot in intent.slots for c in slot.clauses}

    def actions(intents: tuple[Intent, ...]) -> set[str]:
        return {action for intent in intents for action in intent.actions}

    for part in (keys, clauses, actions):
        assert not part(OLD) & part(NEW)
    assert not {i.name for i in OLD} & {i.name for i in NEW}


def test_intents_are_many_and_named_apart() -> None:
    assert len(OLD) == len({intent.name for intent in OLD}) > 100
    assert len(NEW) == len(lexicon.NEW) == 8
    for intent in OLD + NEW:
        assert len({slot.key for slot in intent.slots}) == len(intent.slots)


def test_each_intent_has_its_share_of_the_rows() -> None:
    intents = [row["intent"] for row in rows("train", 80, 0)]

    assert all(intents.count(intent.name) == 10 for intent in NEW)


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="Unknown split 'valid'"):
        rows("valid", 1, 0)  # type: ignore[arg-type]
