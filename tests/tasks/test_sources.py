"""Local files of every kind give the same rows, and what is wrong is said in a sentence."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from fedtuners.tasks import DataConfig, DataError, load, load_own

SECRET = "my diagnosis"
ROWS = [{"instruction": f"say {i}", "output": f"it is {i}"} for i in range(20)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"rows.{kind}", ROWS)

    rows = load_own(DataConfig(source=str(path)))

    assert rows.to_list() == ROWS


def test_a_single_file_is_divided_into_train_and_test(tmp_path: Path) -> None:
    config = DataConfig(source=str(write(tmp_path / "rows.jsonl", ROWS)), holdout=0.25)

    splits = load(config, seed=1)

    assert (len(splits.train), len(splits.test)) == (15, 5)
    together = splits.train.to_list() + splits.test.to_list()
    assert sorted(row["output"] for row in together) == sorted(row["output"] for row in ROWS)
    assert load(config, seed=1).test.to_list() == splits.test.to_list()
    assert load(config, seed=2).test.to_list() != splits.test.to_list()


def test_a_folder_has_a_file_per_split(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS[:12])
    write(tmp_path / "dev.jsonl", ROWS[12:])

    splits = load(DataConfig(source=str(tmp_path), train_rows=5, test_rows=100))

    assert (len(splits.train), len(splits.test)) == (5, 8)


def test_a_split_that_is_asked_for_is_no_other(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "test.jsonl", ROWS[12:])
    asked = DataConfig(source=str(tmp_path), train_split="validation")

    with pytest.raises(DataError, match="no file for split 'validation'; files it has: test, tr"):
        load_own(asked)

    write(tmp_path / "dev.jsonl", ROWS[:3])
    assert len(load_own(asked)) == 3


def test_a_holdout_leaves_a_row_to_train_on(tmp_path: Path) -> None:
    source = str(write(tmp_path / "rows.jsonl", ROWS[:5]))

    splits = load(DataConfig(source=source, holdout=0.95))

    assert (len(splits.train), len(splits.test)) == (1, 4)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv"])
def test_a_byte_order_mark_is_no_part_of_a_row(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    assert load_own(DataConfig(source=str(path))).to_list() == ROWS


def test_a_column_without_a_name_is_let_be(tmp_path: Path) -> None:
    indexed = [{"": str(i), **row} for i, row in enumerate(ROWS)]
    path = write(tmp_path / "rows.csv", indexed)  # as pandas writes its index

    assert load_own(DataConfig(source=str(path)))["output"] == [row["output"] for row in ROWS]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    config = DataConfig(source=str(path))
    first = load(config)
    assert load(config) is first

    write(path, ROWS[:10])

    assert len(load(config).train) == 9


def test_columns_of_the_test_source_may_have_other_names(tmp_path: Path) -> None:
    other = [{"question": "2 + 2", "solution": "4"}]
    config = DataConfig(
        source=str(write(tmp_path / "a.jsonl", ROWS)),
        test_source=str(write(tmp_path / "b.jsonl", other)),
        rename={"question": "instruction", "solution": "output"},
    )

    assert load(config).test.to_list() == [{"instruction": "2 + 2", "output": "4"}]


def test_plain_text_becomes_paragraphs_with_speakers(tmp_path: Path) -> None:
    path = tmp_path / "play.txt"
    path.write_text("ROMEO:\nAy me!\n\nJULIET:\nO Romeo,\nRomeo!\n\nExeunt.\n")

    rows = load_own(DataConfig(source=str(path), prompt="", response="{text}"))

    assert rows["speaker"] == ["ROMEO", "JULIET", ""]
    assert rows["text"][1] == "O Romeo,\nRomeo!"


def test_rows_without_a_gold_label_are_dropped(tmp_path: Path) -> None:
    labels = ["yes", "-", "no", "-1", "yes", "no"]
    rows = [{"text": f"row {i}", "label": label} for i, label in enumerate(labels)]
    config = DataConfig(
        source=str(write(tmp_path / "rows.jsonl", rows)),
        task="classification",
        labels=["no", "yes"],
        holdout=0.3,
    )

    splits = load(config)

    assert len(splits.train) + len(splits.test) == 4
    assert splits.labels == ("no", "yes")


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((-1, 0, 1), ("-1", "0", "1")),
        (("-1", "0", "1"), ("-1", "0", "1")),
        (("None", "Mild", "Severe"), ("Mild", "None", "Severe")),
    ],
    ids=str,
)
def test_no_class_is_taken_for_a_mark(
    tmp_path: Path, values: tuple[object, ...], labels: tuple[str, ...]
) -> None:
    rows = [{"text": f"row {i}", "label": values[i % 3]} for i in range(30)]
    rows.append({"text": "unlabelled", "label": None})
    source = str(write(tmp_path / "rows.jsonl", rows))

    splits = load(DataConfig(source=source, task="classification", holdout=0.3))
    own = load_own(DataConfig(source=source, task="classification", labels=list(labels)))

    assert splits.labels == labels
    assert len(splits.train) + len(splits.test) == 30
    assert own["label"] == list(values * 10)


def test_a_class_that_only_test_rows_have_is_told(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": "01"[i % 2]} for i in range(8)]
    config = DataConfig(
        source=str(write(tmp_path / "train.jsonl", rows)),
        test_source=str(write(tmp_path / "test.jsonl", [{"text": "a", "label": "-1"}])),
        task="classification",
    )

    with pytest.raises(DataError, match=r"test\.jsonl \(test\): column label has values that are"):
        load(config)


def broken(tmp_path: Path, name: str, text: str) -> DataConfig:
    (tmp_path / name).write_text(text)
    return DataConfig(source=str(tmp_path / name))


GOOD = json.dumps({"instruction": SECRET, "output": "x"})


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("rows.jsonl", "", "holds no rows"),
        ("rows.json", "", "holds no rows"),
        ("rows.csv", "instruction,output\n", "holds no rows"),
        ("rows.jsonl", f'{GOOD}\n{{"instruction": {SECRET}}}', "line 2: not valid JSON"),
        ("rows.jsonl", f'{GOOD}\n["{SECRET}"]', "line 2: not a JSON object"),
        ("rows.json", f"{GOOD}\n{GOOD}", r"one object per line is a \.jsonl file"),
        ("rows.json", GOOD, "not a JSON list"),
        ("rows.csv", f"instruction,output\n{SECRET},a,b\n", "row 2: not as many fields"),
        ("rows.csv", f"instruction,output\n{SECRET}\n", "row 2: not as many fields"),
        (
            "rows.csv",
            f'instruction,output\n{SECRET},"{"x" * 140_000}',
            "close every quotation mark",
        ),
        ("rows.jsonl", f'{{"instruction": "{SECRET}", "output": {2**70}}}', "more than 64 bits"),
        ("rows.parquet", SECRET, "not a readable Parquet file"),
        ("rows.docx", SECRET, "files of kind '.docx' are not read"),
        (
            "rows.jsonl",
            f"{GOOD}\n" + '{"instruction": 3, "output": "x"}',
            "instruction mixes types",
        ),
        (
            "rows.jsonl",
            GOOD + "\n" + '{"instruction": null}',
            "column instruction is empty in some rows",
        ),
        (
            "rows.csv",
            f"question,answer\n{SECRET},a\nb,c\n",
            "no column instruction, output; it has",
        ),
    ],
)
def test_broken_files_are_told_without_quoting_them(
    tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        load_own(broken(tmp_path, name, text))
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_places_are_named(tmp_path: Path) -> None:
    for source in (str(tmp_path / "none.jsonl"), "none.csv", "./none"):
        with pytest.raises(DataError, match="no such file or folder"):
            load(DataConfig(source=source))
    with pytest.raises(DataError, match="no file for split 'train'; files it has: none"):
        load(DataConfig(source=str(tmp_path)))
    with pytest.raises(DataError, match="holds one row, and none would be left"):
        load(DataConfig(source=str(write(tmp_path / "one.jsonl", ROWS[:1]))))


def test_a_place_is_named_and_not_the_key_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("fedtuners.tasks.sources.load_dataset", unreachable)
    source = str(write(tmp_path / "rows.jsonl", ROWS))

    with pytest.raises(DataError, match=r"^no/where is no local file or folder, and split 'test'"):
        load(DataConfig(source=source, test_source="no/where"))


def test_an_unknown_label_is_told_without_quoting_it(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "yes"}, {"text": "b", "label": SECRET}]
    config = DataConfig(
        source=str(write(tmp_path / "rows.jsonl", rows)),
        task="classification",
        labels=["yes", "no"],
    )

    with pytest.raises(
        DataError, match=r"column label has values that are none of the labels yes, no"
    ) as told:
        load_own(config)

    assert SECRET not in str(told.value)


def test_a_site_must_be_told_the_label_names(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "yes"}]
    path = write(tmp_path / "rows.jsonl", rows)

    with pytest.raises(DataError, match=r"needs data\.labels"):
        load_own(DataConfig(source=str(path), task="classification"))
