"""`generate` and `chat` ask by the run's prompt, and each side answers for itself."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from fedtuners import talk
from fedtuners.results import Model, open_model, read_run
from fedtuners.tasks import DataConfig

Verb = Callable[..., tuple[int, str, str]]


def test_both_sides_answer_as_the_task_would(fed_sb: Path, verb: Verb) -> None:
    model = open_model(str(fed_sb), None)
    row = {"instruction": "w3", "output": ""}
    expected = {}
    for side in model.sides:
        with model.side(side) as network:
            (expected[side],) = model.task.predictions(network, model.tokenizer, [row])

    code, out, _ = verb("generate", fed_sb, "w3")

    found = {
        side: talk.generate(model, side, talk.example({"instruction": "w3"}, model.config.data))
        for side in model.sides
    }
    assert code == 0
    assert "base:" in out
    assert "adapter:" in out
    assert found == expected


def test_a_classifier_gives_every_label_its_probability(classifier: Path, verb: Verb) -> None:
    code, out, _ = verb("generate", classifier, "w3 w4", "--side", "adapter")

    chances = {line.split()[0]: float(line.split()[1]) for line in out.strip().splitlines()}
    assert code == 0
    assert chances.keys() == {"no", "yes"}
    assert sum(chances.values()) == pytest.approx(1, abs=0.002)


def test_a_chat_answers_line_after_line(
    fed_sb: Path, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("w1\nw2\n"))

    code, out, _ = verb("chat", fed_sb, "--max-new-tokens", 3)

    assert code == 0
    assert out.count("base: ") == 2
    assert out.count("adapter: ") == 2


def test_the_base_comes_back_after_the_residual_was_cleared(fedex: Path) -> None:
    run = read_run(str(fedex))
    model, plain = Model(run.config, fedex / "adapter"), Model(run.config)
    asked = talk.example({"instruction": "w5"}, run.config.data)

    tuned = talk.generate(model, "adapter", asked, max_new_tokens=12)
    base = talk.generate(model, "base", asked, max_new_tokens=12)

    assert base == talk.generate(plain, "base", asked, max_new_tokens=12)
    assert tuned == talk.generate(model, "adapter", asked, max_new_tokens=12)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["2 + 2 = 4?"], {"question": "2 + 2 = 4?"}),
        (["question=2 + 2 = 4?"], {"question": "2 + 2 = 4?"}),
    ],
)
def test_one_text_fills_the_only_column(words: list[str], expected: dict[str, str]) -> None:
    assert talk.fields(words, DataConfig(prompt="Q: {question}\nA: ")) == expected


def test_several_columns_must_be_named() -> None:
    config = DataConfig(task="classification", text=["premise", "hypothesis"])

    assert talk.fields(["premise=a", "hypothesis=b=c"], config)["hypothesis"] == "b=c"
    with pytest.raises(talk.PromptError, match="premise=… hypothesis=…"):
        talk.fields(["just a text"], config)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["generate", "nowhere", "text"], "is no run folder"),
        (["generate", "{run}", "a=1", "b=2"], "instruction=…"),
        (["generate", "{run}", "text", "--max-new-tokens", "0"], "must be at least 1"),
        (["generate", "{run}", "text", "--temperature", "-1"], "must be at least 0"),
        (["chat", "nowhere"], "is no run folder"),
        (["chat", "{classifier}"], "use fedtuners generate"),
    ],
)
def test_wrong_input_gives_one_sentence(
    fed_sb: Path, classifier: Path, verb: Verb, wrong: list[str], sentence: str
) -> None:
    places = {"{run}": str(fed_sb), "{classifier}": str(classifier)}

    code, _, err = verb(*(places.get(word, word) for word in wrong))

    assert code == 2
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
