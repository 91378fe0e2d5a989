"""The embedded model and data are a task like any other."""

import pytest

from fedtuners.tasks import DataConfig, DataError, ModelConfig, evaluate, load, make_task


def test_the_demo_loads_and_answers_what_it_was_pretrained_on() -> None:
    config = DataConfig(test_split="old", train_rows=30, test_rows=40)
    splits = load(config, seed=3)
    task = make_task(config)
    model, tokenizer = task.load_base(ModelConfig())

    encoded = task.encode(splits.train, tokenizer)
    metric = evaluate(task, model, tokenizer, splits.test)

    assert (len(splits.train), len(splits.test)) == (30, 40)
    assert (encoded.shortened_prompts, encoded.shortened_responses) == (0, 0)
    assert metric.value > 0.5
    assert load(config, seed=3).train.to_list() == splits.train.to_list()


def test_an_unknown_split_of_the_demo_is_told() -> None:
    with pytest.raises(DataError, match="choose pretrain, train, test or old"):
        load(DataConfig(test_split="dev"))
