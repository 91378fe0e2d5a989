"""The real data sets and models, where they are: formats, row counts, scoring, both tasks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from fedtuners.tasks import (
    DataConfig,
    ModelConfig,
    PartitionConfig,
    Splits,
    batches,
    describe,
    evaluate,
    load,
    loss,
    make_task,
    partitions,
)
from fedtuners.tasks.answers import final_answer, final_number, same_mathematics, same_number
from fedtuners.tasks.formats import candidates

CONF = Path(__file__).resolve().parents[2] / "conf"


def configured(name: str, source: Path, **fields: Any) -> DataConfig:
    """A shipped configuration on a local copy of its data."""
    merged = OmegaConf.merge(DataConfig, OmegaConf.load(CONF / "data" / f"{name}.yaml"))
    merged.source = str(source)
    config: Any = OmegaConf.to_object(merged)
    return replace(config, **fields)


def sizes(splits: Splits) -> tuple[int, int]:
    return len(splits.train), len(splits.test)


def test_gsm8k_scores_its_own_answers_as_right(shared: Path) -> None:
    config = configured("gsm8k", shared / "data/gsm8k")
    splits = load(config)
    task = make_task(config)

    assert sizes(splits) == (7473, 1319)
    for rows in (splits.train, splits.test):
        answers = task.references(rows)
        stated = [answer.split("####")[1].strip() for answer in answers]
        for answer, number in zip(answers, stated, strict=True):
            assert same_number(answer, number)
            assert same_number(f"Therefore, the answer is {number}.", answer)
            assert same_number(f"After 3 steps.\nThe answer is: ${number}", answer)
            assert not same_number(f"#### {number}1", answer)
            assert same_mathematics(rf"so it is $\boxed{{{number}}}$", number)
    assert evaluate_gold(config, splits) == 1.0


def evaluate_gold(config: DataConfig, splits: Splits) -> float:
    from fedtuners.tasks.metrics import score

    gold = make_task(config).references(splits.test)
    return score(config.measured, gold, gold).value


@pytest.mark.parametrize(
    ("train", "test", "counts"),
    [
        ("boolq_train", "boolq_test", (9427, 3270)),
        ("ARC-Easy_train", "ARC-Easy_test", (2251, 2376)),
        ("ARC-Challenge_train", "ARC-Challenge_test", (1119, 1172)),
        ("openbookqa_train", "openbookqa_test", (4957, 500)),
        ("boolq_train", "piqa_test", (9427, 1838)),
        ("boolq_train", "social_i_qa_test", (9427, 1954)),
        ("boolq_train", "winogrande_test", (9427, 1267)),
    ],
)
def test_commonsense_rows_list_their_choices(
    shared: Path, train: str, test: str, counts: tuple[int, int]
) -> None:
    folder = shared / "data/commonsense"
    config = configured(
        "commonsense170k", folder / f"{train}.json", test_source=str(folder / f"{test}.json")
    )

    splits = load(config)

    assert sizes(splits) == counts
    for rows in (splits.train, splits.test):
        for row in rows.to_list():
            assert row["answer"] in candidates(row, config)
            assert row["output"].endswith(f"the correct answer is {row['answer']}")


@pytest.mark.parametrize(
    ("name", "count"),
    [("AddSub", 395), ("MultiArith", 600), ("SVAMP", 1000), ("SingleEq", 508)],
)
def test_arithmetic_answers_are_numbers(shared: Path, name: str, count: int) -> None:
    folder = shared / "data/math"
    config = DataConfig(
        source=str(folder / "math_data.json"),
        test_source=str(folder / f"{name}_test.json"),
        metric="gsm8k",
        reference="{answer}",
    )

    splits = load(config)

    assert sizes(splits) == (3260, count)
    for row in splits.test.to_list():
        assert final_number(f"The answer is {row['answer']}.") == final_number(row["answer"])
    assert evaluate_gold(config, splits) == 1.0


@pytest.mark.parametrize(("name", "count"), [("AQuA", 254), ("mathqa", 2985)])
def test_lettered_answers_are_letters(shared: Path, name: str, count: int) -> None:
    path = str(shared / f"data/math/{name}_test.json")
    config = DataConfig(source=path, test_source=path, metric="math", reference="{answer}")

    rows = load(config).test

    assert len(rows) == count
    for answer in rows["answer"]:
        assert final_answer(f"Some steps.\nThe answer is {answer}") == answer
        assert same_mathematics(f"Some steps.\nThe answer is {answer}.", answer)


def test_snli_and_sst2_have_their_rows_and_labels(shared: Path) -> None:
    folder = shared / "data/snli"
    snli = load(
        configured("snli", folder / "validation.jsonl", test_source=str(folder / "test.jsonl"))
    )
    sst2 = load(configured("sst2", shared / "data/sst2"))

    assert sizes(snli) == (9842, 9824)
    assert snli.labels == ("entailment", "neutral", "contradiction")
    assert sizes(sst2) == (67349, 872)
    assert sst2.labels == ("negative", "positive")
    parts = partitions(snli.train, PartitionConfig("dirichlet", "label", alpha=0.5), 30)
    assert sum(describe(parts)["rows"]) == 9842


def test_shakespeare_splits_by_speaker(shared: Path) -> None:
    config = configured("shakespeare", shared / "data/shakespeare/tinyshakespeare.txt")

    train = load(config).train

    assert len(set(train["speaker"]) - {""}) > 250
    table = describe(partitions(train, PartitionConfig("natural", "speaker"), 30))["rows"]
    assert sum(table) == len(train)
    assert max(table) < 1.2 * min(table)


def test_minilm_learns_to_classify(shared: Path) -> None:
    folder = shared / "data/snli"
    config = configured(
        "snli",
        folder / "validation.jsonl",
        test_source=str(folder / "test.jsonl"),
        train_rows=32,
        test_rows=16,
        max_length=32,
    )
    splits = load(config)
    task = make_task(config, splits.labels)
    model, tokenizer = task.load_base(ModelConfig(str(shared / "models/minilm-l6-v2")))
    model.classifier.requires_grad_(True)
    model.bert.encoder.layer[-1].requires_grad_(True)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    encoded = task.encode(splits.train, tokenizer)

    each = []
    for batch in batches(encoded, tokenizer.pad_token_id, 16, 8, (0, 0, 0)):
        value = loss(task, model, batch)
        value.backward()
        optimiser.step()
        optimiser.zero_grad()
        each.append(float(value.detach()))

    assert each[0] == pytest.approx(1.1, abs=0.1)
    assert sum(each[-2:]) < 0.9 * sum(each[:2])
    metric = evaluate(task, model, tokenizer, splits.test)
    assert (metric.name, metric.count) == ("accuracy", 16)


def test_stories260k_tells_a_story_and_has_a_loss(shared: Path) -> None:
    story = {"instruction": "Once upon a time", "output": ", there was a little girl"}
    config = DataConfig(prompt="{instruction}", max_length=128, max_new_tokens=24)
    task = make_task(config)
    model, tokenizer = task.load_base(ModelConfig(str(shared / "models/stories260k")))

    said = task.predictions(model, tokenizer, [story, {**story, "instruction": "Lily"}])

    assert said[0].startswith(", there was a little girl named Lily.")
    assert said[1] == task.predictions(model, tokenizer, [{**story, "instruction": "Lily"}])[0]
    item = task.encode([story], tokenizer).items[0]
    assert tokenizer.convert_ids_to_tokens(item["input_ids"])[5:8] == [",", "▁there", "▁was"]
    likely = evaluate(make_task(replace(config, metric="loss")), model, tokenizer, [story])
    odd = {**story, "output": ", zebra was of tariffs"}
    unlikely = evaluate(make_task(replace(config, metric="loss")), model, tokenizer, [odd])
    assert likely.value < 0.8 * unlikely.value
