"""One row to one example."""

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from fedtuners.tasks import DataConfig, DataError
from fedtuners.tasks.formats import (
    Example,
    Labelled,
    candidates,
    check_columns,
    columns,
    instruction,
    label_names,
    labelled,
    reference,
)


def test_templates_name_columns_and_leave_other_braces_alone() -> None:
    config = DataConfig(prompt="Q: {question} {{set}}\n", response="{answer}")
    row = {"question": "is {1} in it?", "answer": "{yes}"}

    assert instruction(row, config) == Example("Q: is {1} in it? {set}\n", "{yes}")
    assert columns(config.prompt) == ["question"]
    assert reference(row, config) == "{yes}"


def test_an_input_is_never_lost() -> None:
    row = {"instruction": "Translate.", "input": "chat", "output": "cat"}

    assert instruction(row, DataConfig()).prompt == "Translate.\nchat\n"
    assert instruction({**row, "input": ""}, DataConfig()).prompt == "Translate.\n"


def test_a_prompt_of_ones_own_is_not_set_aside_for_an_input() -> None:
    row = {"instruction": "Translate.", "input": "chat", "output": "cat"}
    own = DataConfig(prompt="{input} ")
    both = DataConfig(prompt="{instruction} ", prompt_with_input="{instruction} {input} ")

    assert instruction({"input": "chat", "output": "cat"}, own).prompt == "chat "
    assert instruction(row, own).prompt == "chat "
    assert instruction(row, both).prompt == "Translate. chat "
    assert instruction({**row, "input": None}, both).prompt == "Translate. "


def test_columns_of_the_prompt_with_an_input_are_needed_where_rows_have_one() -> None:
    config = DataConfig(prompt="{input} ", prompt_with_input="{context} {input} ")
    rows = Dataset.from_dict({"input": ["a", "b"], "output": ["c", "d"]})
    asked = {"instruction": ["a", "b"], "input": [None, "b"], "output": ["c", "d"]}

    with pytest.raises(DataError, match="no column context; it has input, output"):
        check_columns(rows, config, "mine")
    check_columns(rows, DataConfig(prompt="{input} "), "mine")
    check_columns(Dataset.from_dict(asked), DataConfig(), "mine")
    with pytest.raises(DataError, match="column input is empty in some rows"):
        check_columns(Dataset.from_dict(asked), DataConfig(prompt="{input}"), "mine")


@pytest.mark.parametrize("value", [["a"], {"a": "b"}], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        DataConfig(prompt="{mine}\n", response="{output}"),
        DataConfig(task="classification", text=["mine"], label="output"),
        DataConfig(task="classification", text=["output"], label="mine"),
    ],
    ids=["prompt", "text", "label"],
)
def test_lists_and_objects_are_no_text(config: DataConfig, value: object) -> None:
    rows = Dataset.from_dict({"mine": [value, value], "output": ["x", "y"]})

    with pytest.raises(DataError, match="rows: column mine holds lists or objects: write its val"):
        check_columns(rows, config, "rows")


def test_a_choice_is_compared_with_its_column() -> None:
    config = DataConfig(metric="choice", choice="output", response="The answer is {output}")
    row = {"instruction": "True?", "output": "yes"}

    assert reference(row, config) == "yes"
    assert reference(row, DataConfig(response="It is {output}")) == "It is yes"


def test_a_conversation_ends_with_the_assistant() -> None:
    config = DataConfig(chat=True, messages="turns")
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?")]
    row = {"turns": [{"role": role, "content": content} for role, content in turns]}

    assert instruction(row, config) == Example("Hi", "Yes?", (("system", "Be brief."),))
    with pytest.raises(DataError, match="must end with a user turn and the assistant's"):
        instruction({"turns": row["turns"][:2]}, config)


def test_candidates_come_from_the_configuration_or_the_prompt() -> None:
    row = {"instruction": "True?\n\nAnswer format: true/false", "answer": "true"}

    assert candidates(row, DataConfig()) == ["true", "false"]
    assert candidates(row, DataConfig(choices=["A", "B"])) == ["A", "B"]
    with pytest.raises(DataError, match="metric=choice needs"):
        candidates({"instruction": "True?"}, DataConfig())


@pytest.mark.parametrize("written", ["neutral", 1, "1"])
def test_a_label_is_a_name_or_an_index(written: str | int) -> None:
    config = DataConfig(task="classification", text=["premise", "hypothesis"])
    row = {"premise": "a", "hypothesis": "b", "label": written}

    assert labelled(row, config, ("entailment", "neutral")) == Labelled(("a", "b"), 1)


def test_label_names_are_those_configured_declared_or_found() -> None:
    config = DataConfig(task="classification")
    plain = Dataset.from_dict({"text": ["a", "b", "c"], "label": ["pos", "neg", "pos"]})
    declared = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    typed = Dataset.from_dict({"text": ["a"], "label": [1]}, features=declared)

    assert label_names(plain, config) == ("neg", "pos")
    assert label_names(typed, config) == ("no", "yes")
    assert label_names(plain, DataConfig(labels=["pos", "neg"])) == ("pos", "neg")


def test_wrong_columns_are_named_with_the_key_to_set() -> None:
    rows = Dataset.from_dict({"sentence": ["secret"], "label": [0]})
    config = DataConfig(task="classification")

    with pytest.raises(
        DataError, match=r"mine has no column text; it has sentence, label: set data\.text"
    ):
        check_columns(rows, config, "mine")
    with pytest.raises(DataError, match="unbalanced brace"):
        check_columns(rows, DataConfig(prompt="{sentence"), "mine")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"task": "regression"}, "data.task=regression is not known; choose from causal_lm"),
        ({"metric": "accuracy"}, "choose from exact_match, gsm8k"),
        ({"messages": "turns"}, "data.messages needs data.chat=true"),
        ({"metric": "choice"}, r"by {answer}, which data\.response does not contain"),
        ({"text": ["a", "b", "c"]}, "must name one column, or the two of a pair"),
        ({"source": ""}, "data.source is empty: give a file or a hub name"),
        ({"holdout": 1.0}, "strictly between 0 and 1"),
        ({"max_length": 0}, "data.max_length=0 must be at least 1"),
    ],
)
def test_configurations_that_cannot_be_are_refused(
    fields: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        DataConfig(**fields)  # type: ignore[arg-type]
