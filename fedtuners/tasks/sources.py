"""Data sets by name: the embedded demo task, a local file or folder, or the Hugging Face hub.

`load` gives the training and test rows of one configuration, checked: present, not empty, with the
columns that the templates name, and with labels that are known.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from fedtuners.tasks import formats
from fedtuners.tasks.config import DataConfig
from fedtuners.tasks.readers import READERS, DataError, read, table

DEMO_TRAIN_ROWS, DEMO_TEST_ROWS = 6000, 500  # where the configuration sets no number
VALIDATION_NAMES = ("validation", "valid", "dev")  # what folders call the same split


@dataclass(frozen=True)
class Splits:
    """Rows to train on, rows to test on, and the label names of a classification task."""

    train: Dataset
    test: Dataset
    labels: tuple[str, ...] = ()


def load(config: DataConfig, seed: int = 0) -> Splits:
    """Load, check and cut to size what `config` names; kept in memory while it stays the same.

    Parameters
    ----------
    config : DataConfig
    seed : int
        Draws the rows of the demo task, of `train_rows` and `test_rows`, and of the holdout.

    Raises
    ------
    DataError
        When data are missing, empty or malformed, columns are not those of the templates, or a
        label is not among the labels. The message never quotes a row.
    """
    return _load(_Key(config, seed, _stamp(config)))


def load_own(config: DataConfig, seed: int = 0) -> Dataset:
    """The rows that a site with data of its own trains on: all of its file, or its train split.

    Unlike `load` it wants no test rows, and holds none out. Label names must be in the
    configuration, since another site's rows may have others. Raises DataError.
    """
    return own_rows(untouched(config), config, seed)


def untouched(config: DataConfig) -> Dataset:
    """A site's own rows as they lie in its file, before a run names, checks or cuts them."""
    return _split(config, config.train_split, 0)


def own_rows(rows: Dataset, config: DataConfig, seed: int = 0) -> Dataset:
    """What a run trains on of a site's `untouched` rows. Raises DataError."""
    if config.task == "classification" and not config.labels:
        raise DataError("a site with its own rows needs data.labels: every site the same names")
    return _at_most(_checked(rows, config, config.source), config.train_rows, seed)


@dataclass(frozen=True)
class _Key:
    """What `load` remembers by: configuration, seed, and the files' times of change."""

    config: DataConfig
    seed: int
    stamp: tuple[int, ...]

    def __hash__(self) -> int:
        return hash((repr(self.config), self.seed, self.stamp))


def _stamp(config: DataConfig) -> tuple[int, ...]:
    places = [Path(name).expanduser() for name in (config.source, config.test_source) if name]
    files = [file for place in places if place.exists() for file in _files(place)]
    return tuple(file.stat().st_mtime_ns for file in files)


def _files(place: Path) -> list[Path]:
    return sorted(place.iterdir()) if place.is_dir() else [place]


@lru_cache(maxsize=4)
def _load(key: _Key) -> Splits:
    config, seed = key.config, key.seed
    train, test = _train_and_test(config, seed)
    train = _checked(train, config, f"{config.source} (train)")
    labels = formats.label_names(train, config) if config.task == "classification" else ()
    test = _checked(test, config, f"{config.test_source or config.source} (test)", labels)
    train = _at_most(train, config.train_rows, seed)
    return Splits(train, _at_most(test, config.test_rows, seed), labels)


def _train_and_test(config: DataConfig, seed: int) -> tuple[Dataset, Dataset]:
    if config.test_source is not None or not Path(config.source).expanduser().is_file():
        train = _split(config, config.train_split, seed)
        if config.test_source is not None:
            config = replace(config, source=config.test_source, subset=config.test_subset)
        return train, _split(config, config.test_split, seed)
    rows = read(Path(config.source).expanduser())
    if len(rows) < 2:
        raise DataError(f"{config.source} holds one row, and none would be left to test on")
    held_out = min(max(1, round(config.holdout * len(rows))), len(rows) - 1)
    halves = rows.train_test_split(held_out, seed=seed)
    return halves["train"], halves["test"]


def _checked(rows: Dataset, config: DataConfig, place: str, labels: Sequence[str] = ()) -> Dataset:
    """The rows of `config`'s task, without those that carry no label.

    Raises DataError for columns that do not fit it, and for a label that is none of `labels`; by
    default those are what `config` and the rows say.
    """
    has = rows.column_names
    names = {old: new for old, new in config.rename.items() if old in has and new not in has}
    rows = rows.rename_columns(names) if names else rows
    formats.check_columns(rows, config, place)
    if config.task != "classification":
        return rows
    rows = formats.labelled_only(rows, config)
    formats.check_labels(rows, config, labels or formats.label_names(rows, config), place)
    return rows


def _split(config: DataConfig, split: str, seed: int) -> Dataset:
    """One split of `config.source`, of whichever kind the source is."""
    source, place = config.source, Path(config.source).expanduser()
    if source == "demo":
        return _demo(config, split, seed)
    if place.is_file():
        return read(place)
    if place.is_dir():
        return read(_file_of(place, split))
    if source.startswith((".", "/", "~")) or place.suffix in READERS:
        raise DataError(f"{source}: no such file or folder")
    return _hub(source, config.subset, split)


def _demo(config: DataConfig, split: str, seed: int) -> Dataset:
    from fedtuners.demo import rows

    asked = config.train_rows if split == config.train_split else config.test_rows
    count = asked or (DEMO_TRAIN_ROWS if split == "train" else DEMO_TEST_ROWS)
    try:
        return table(rows(split, count, seed), "the demo task")  # type: ignore[arg-type]
    except ValueError as error:
        raise DataError(f"data.source=demo: {error}") from None


def _file_of(folder: Path, split: str) -> Path:
    """The file named after a split: for "test" a validation file too, never the other way round."""
    named = split in ("test", *VALIDATION_NAMES)
    names = (split, *VALIDATION_NAMES) if named else (split,)
    files = {file.stem: file for file in _files(folder) if file.suffix.lower() in READERS}
    for name in names:
        if name in files:
            return files[name]
    found = ", ".join(sorted(files)) or "none"
    raise DataError(f"{folder} has no file for split '{split}'; files it has: {found}")


def _hub(name: str, subset: str | None, split: str) -> Dataset:
    try:
        rows: Any = load_dataset(name, subset, split=split)
    except Exception as error:
        raise DataError(
            f"{name} is no local file or folder, and split '{split}' of it could not "
            f"be loaded from the hub ({type(error).__name__}); check the name, the subset, the "
            "split and the connection"
        ) from error
    return rows


def _at_most(rows: Dataset, count: int | None, seed: int) -> Dataset:
    """A random sample in the original order: neighbours in a file are often alike."""
    if count is None or count >= len(rows):
        return rows
    return rows.select(sorted(random.Random(seed).sample(range(len(rows)), count)))
