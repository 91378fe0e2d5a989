"""Local files to rows: JSON, JSON lines, CSV, TSV, Parquet and plain text.

Errors name the file and the line, never what stands in it: rows may be private.
"""

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import Dataset

Row = dict[str, Any]


class DataError(ValueError):
    """Data that cannot be used; its one sentence names the place and the fix."""


def read(path: Path) -> Dataset:
    """Read one file as a data set. Raises DataError for an empty, broken or unknown one."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(sorted(READERS))
        raise DataError(f"{path}: files of kind '{path.suffix}' are not read; use one of {known}")
    try:
        rows = reader(path)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; convert it first") from None
    except csv.Error as error:
        raise DataError(
            f"{path}: {error}; close every quotation mark, or write long texts to a .jsonl file"
        ) from None
    except pyarrow.ArrowInvalid:
        raise DataError(f"{path} is not a readable Parquet file") from None
    if not len(rows):
        raise DataError(f"{path} holds no rows")
    return rows if isinstance(rows, Dataset) else table(rows, str(path))


def table(rows: list[Row], place: str) -> Dataset:
    """Rows as a data set with the union of their columns; a column a row lacks is null there."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    try:
        return Dataset.from_dict({name: [row.get(name) for row in rows] for name in columns})
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        mixed = ", ".join(name for name in columns if _mixes_types(rows, name))
        raise DataError(
            f"{place}: column {mixed} mixes types; write its values all as text or all as numbers"
        ) from None
    except OverflowError:
        raise DataError(
            f"{place}: a column has whole numbers of more than 64 bits; write its values as text"
        ) from None


def _mixes_types(rows: list[Row], name: str) -> bool:
    return len({type(row[name]) for row in rows if row.get(name) is not None}) > 1


def _json_lines(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        return [_row(line, path, n) for n, line in enumerate(lines, 1) if line.strip()]


def _row(line: str, path: Path, number: int) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        raise DataError(f"{path}, line {number}: not valid JSON") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: not a JSON object of column names and values")
    return row


def _json(path: Path) -> list[Row]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        return []
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not valid JSON; one object per line is a .jsonl file"
        ) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} is not a JSON list of objects")
    return rows


def _csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return _delimited(csv.DictReader(file), path)


def _tsv(path: Path) -> list[Row]:
    """Tab-separated text in which a quotation mark is a character like any other, as in GLUE."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return _delimited(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE), path)


def _delimited(reader: Iterable[dict[Any, Any]], path: Path) -> list[Row]:
    rows = []
    for number, row in enumerate(reader, 2):
        if None in row or None in row.values():  # fields without a header, or the reverse
            raise DataError(f"{path}, row {number}: not as many fields as the header has columns")
        rows.append(row)
    return rows


def _parquet(path: Path) -> Dataset:
    return Dataset(pyarrow.parquet.read_table(path))


def _text(path: Path) -> list[Row]:
    """Paragraphs as rows {speaker, text}; a first line "NAME:", as in a play, names the speaker."""
    blocks = re.split(r"\n\s*\n", path.read_text(encoding="utf-8-sig").strip())
    parts = [re.fullmatch(r"(?:([^\n:]+):\n)?(.+)", block, re.DOTALL) for block in blocks]
    return [{"speaker": part[1] or "", "text": part[2]} for part in parts if part]


READERS = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".txt": _text,
}
