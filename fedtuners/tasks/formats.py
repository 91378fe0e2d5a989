"""One row to one example: templates for prompts and responses, columns for texts and labels.

The formats of GSM8K, MATH, MetaMathQA, the LLM-Adapters sets, SNLI, GLUE and one's own files are
all values of DataConfig; nothing here knows a data set by name.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from datasets import ClassLabel, Dataset, Value

from fedtuners.tasks.config import DataConfig
from fedtuners.tasks.readers import DataError

UNLABELLED = ("-1", "-")  # GLUE's and SNLI's marks for rows without a gold label


@dataclass(frozen=True)
class Example:
    """An instruction: what is given, what is to be answered, and earlier (role, content) turns."""

    prompt: str
    response: str
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Labelled:
    """One text or a pair of texts, and the index of its label."""

    texts: tuple[str, ...]
    label: int


def instruction(row: Mapping[str, Any], config: DataConfig) -> Example:
    """A row as an instruction; the templates' columns must be there (see `check_columns`)."""
    if config.messages is not None:
        return _conversation(row[config.messages], config.messages)
    with_input = config.prompts_with_input and row.get("input")
    prompt = config.prompt_with_input if with_input else config.prompt
    return Example(fill(prompt, row), fill(config.response, row))


def _conversation(turns: Sequence[Mapping[str, str]], column: str) -> Example:
    said = [(turn["role"], turn["content"]) for turn in turns]
    if len(said) < 2 or said[-1][0] != "assistant" or said[-2][0] != "user":
        raise DataError(f"column {column}: a row must end with a user turn and the assistant's")
    return Example(said[-2][1], said[-1][1], tuple(said[:-2]))


def reference(row: Mapping[str, Any], config: DataConfig) -> str:
    """What the prediction for a row is compared with; a choice is compared with its column."""
    if config.reference is not None:
        return fill(config.reference, row)
    if config.measured == "choice":
        return str(row[config.choice])
    return instruction(row, config).response


def candidates(row: Mapping[str, Any], config: DataConfig) -> list[str]:
    """A multiple-choice row's answers: `data.choices`, or its prompt's "Answer format: a/b/c"."""
    if config.choices:
        return list(config.choices)
    listed = re.search(r"Answer format:\s*(\S+)", fill(config.prompt, row))
    if listed is None:
        raise DataError('metric=choice needs data.choices or "Answer format: a/b" in the prompt')
    return listed[1].split("/")


def fill(template: str, row: Mapping[str, Any]) -> str:
    """Put a row's columns into a template."""
    return template.format_map(row)


def columns(template: str) -> list[str]:
    """The columns that a template names. Raises DataError for unbalanced braces."""
    try:
        return [name for _, name, _, _ in Formatter().parse(template) if name]
    except ValueError:
        raise DataError(f"the template {template!r} has an unbalanced brace; double it") from None


def labelled(row: Mapping[str, Any], config: DataConfig, labels: Sequence[str]) -> Labelled:
    """A row as texts and the index of its label."""
    return Labelled(tuple(str(row[name]) for name in config.text), label_index(row, config, labels))


def label_index(row: Mapping[str, Any], config: DataConfig, labels: Sequence[str]) -> int:
    """The index of a row's label, which may be written as a name or as the index itself."""
    index = _index(row[config.label], labels)
    if index is None:
        raise DataError(f"a label in column {config.label} is not one of {', '.join(labels)}")
    return index


def _index(value: object, labels: Sequence[str]) -> int | None:
    text = str(value)
    if text in labels:
        return labels.index(text)
    return int(text) if text.isdecimal() and int(text) < len(labels) else None


def label_names(rows: Dataset, config: DataConfig) -> tuple[str, ...]:
    """Label names in order: as configured, as the data set declares them, or as found, sorted."""
    if config.labels:
        return tuple(config.labels)
    feature = rows.features[config.label]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    return tuple(str(value) for value in sorted(rows.unique(config.label)))


def labelled_only(rows: Dataset, config: DataConfig) -> Dataset:
    """Without the rows that carry no gold label: null or "", and -1 or "-" among known labels.

    Where the labels are whatever the rows hold, -1 is a label like any other.
    """
    known = config.labels or isinstance(rows.features[config.label], ClassLabel)
    marks = {"", *(UNLABELLED if known else ())} - set(config.labels)
    values = enumerate(rows[config.label][:])  # a list; row by row is slow
    kept = [i for i, value in values if value is not None and str(value) not in marks]
    return rows if len(kept) == len(rows) else rows.select(kept)


def check_labels(rows: Dataset, config: DataConfig, labels: Sequence[str], place: str) -> None:
    """Raise DataError, without quoting it, if a label is none of `labels`."""
    if not len(rows):
        raise DataError(f"{place} has no row with a label in column {config.label}")
    if any(_index(value, labels) is None for value in rows.unique(config.label)):
        # How many would tell a server that guesses labels whether it guessed right.
        raise DataError(
            f"{place}: column {config.label} has values that are none of the labels "
            f"{', '.join(labels)}; set data.labels"
        )


def needed_columns(config: DataConfig, has_input: bool = False) -> list[str]:
    """Every column that a configuration reads, of rows with or without an `input`."""
    if config.task == "classification":
        return [*config.text, config.label]
    if config.messages is not None:
        return [config.messages]
    templates = [config.prompt, config.response, config.reference or ""]
    if has_input and config.prompts_with_input:
        templates.append(config.prompt_with_input)
    return list(dict.fromkeys(name for template in templates for name in columns(template)))


def check_columns(rows: Dataset, config: DataConfig, place: str) -> None:
    """Raise DataError naming a column that is missing, has a value missing, or is not text."""
    needed = needed_columns(config, "input" in rows.column_names)
    missing = [name for name in needed if name not in rows.column_names]
    if missing:
        raise DataError(
            f"{place} has no column {', '.join(missing)}; it has {', '.join(rows.column_names)}: "
            f"set {_keys(config)} to match"
        )
    classifies = config.task == "classification"
    may_lack = {config.label} if classifies else {"input"} - set(needed_columns(config))
    for name in needed:
        if rows.data.column(name).null_count and name not in may_lack:
            raise DataError(f"{place}: column {name} is empty in some rows: fill it, or drop them")
        if name != config.messages and not isinstance(rows.features[name], Value | ClassLabel):
            raise DataError(
                f"{place}: column {name} holds lists or objects: write its values as text"
            )


def _keys(config: DataConfig) -> str:
    if config.task == "classification":
        return "data.text and data.label"
    return "data.messages" if config.messages is not None else "data.prompt and data.response"
