"""Greedy text is the same in a batch as alone, stops where it should, and leaves no trace."""

from typing import Any

import pytest
import torch

from fedtuners.tasks import DataConfig, Metric, evaluate, losses, make_task
from fedtuners.tasks.encoding import encode_instructions
from fedtuners.tasks.formats import Example
from fedtuners.tasks.generation import generate, log_likelihoods

PROMPTS = [[0, *range(10, 10 + n)] for n in (3, 17, 8, 1, 11)]


def by_hand(model: Any, prompt: list[int], new_tokens: int, stop: list[int]) -> list[int]:
    """One prompt, no cache, no padding."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(new_tokens):
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if token in stop:
                break
            ids.append(token)
    return ids[len(prompt) :]


def test_a_batch_says_what_each_prompt_says_alone(model: Any) -> None:
    expected = [by_hand(model, prompt, 12, [1]) for prompt in PROMPTS]

    together = generate(model, PROMPTS, 12, stop=[1], pad=2, batch_size=5)
    in_twos = generate(model, PROMPTS, 12, stop=[1], pad=2, batch_size=2)

    assert together == in_twos == expected
    assert len(set(map(tuple, expected))) == len(PROMPTS)


def test_a_stop_token_ends_one_response_and_not_its_neighbours(model: Any) -> None:
    free = generate(model, PROMPTS, 12, stop=[1], pad=2)
    stop = [free[0][4], 1]

    stopped = generate(model, PROMPTS, 12, stop=stop, pad=2)

    assert stopped == [by_hand(model, prompt, 12, stop) for prompt in PROMPTS]
    assert len(stopped[0]) <= 4
    assert any(len(response) == 12 for response in stopped)


def test_modes_come_back_even_after_an_error(model: Any) -> None:
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]

    generate(model, PROMPTS[:1], 2, stop=[1], pad=2)
    with pytest.raises(IndexError):
        generate(model, [[10_000]], 2, stop=[1], pad=2)

    assert [module.training for module in model.modules()] == before
    model.eval()


def test_predictions_and_their_score(model: Any, tokenizer: Any) -> None:
    task = make_task(DataConfig(max_new_tokens=6))
    rows = [{"instruction": f"say {word}", "output": word} for word in ("this", "that")]
    said = task.predictions(model, tokenizer, rows)
    rows[0]["output"] = said[0]

    metric = evaluate(task, model, tokenizer, rows)

    assert isinstance(metric, Metric)
    assert (metric.name, metric.value, metric.count) == ("exact_match", 0.5, 2)
    assert tokenizer.padding_side == "right"


def test_likelihood_is_the_sum_over_the_response(model: Any, tokenizer: Any) -> None:
    examples = [Example("one ", "two"), Example("a longer question ", "x")]
    encoded = encode_instructions(examples, tokenizer, 64, chat=False)

    found = log_likelihoods(model, encoded, tokenizer.pad_token_id)

    for example, value in zip(examples, found, strict=True):
        prompt = [0, *tokenizer(example.prompt, add_special_tokens=False).input_ids]
        response = [*tokenizer(example.response, add_special_tokens=False).input_ids, 1]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0].log_softmax(dim=-1)
        steps = range(len(prompt) - 1, len(prompt) + len(response) - 1)
        wanted = sum(float(logits[i, t]) for i, t in zip(steps, response, strict=True))
        assert value == pytest.approx(wanted, abs=1e-9)


def test_the_likeliest_choice_is_the_prediction(model: Any, tokenizer: Any) -> None:
    config = DataConfig(metric="choice", response="is {answer}", reference="{answer}")
    task = make_task(config)
    options = ["alpha", "beta", "gamma"]
    rows = [
        {"instruction": f"{i}? Answer format: {'/'.join(options)}", "answer": "beta"}
        for i in range(3)
    ]

    chosen = task.predictions(model, tokenizer, rows)

    for row, choice in zip(rows, chosen, strict=True):
        encoded = task.encode([{**row, "answer": option} for option in options], tokenizer)
        values = log_likelihoods(model, encoded, tokenizer.pad_token_id)
        assert choice == options[values.index(max(values))]
    metric = evaluate(task, model, tokenizer, rows)
    assert metric.value == chosen.count("beta") / 3


def test_loss_and_perplexity_are_metrics_too(model: Any, tokenizer: Any) -> None:
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "dd"}]
    each = losses(
        make_task(DataConfig()), model, make_task(DataConfig()).encode(rows, tokenizer), 2
    )

    mean = evaluate(make_task(DataConfig(metric="loss")), model, tokenizer, rows)
    perplexity = evaluate(make_task(DataConfig(metric="perplexity")), model, tokenizer, rows)

    assert mean.value == pytest.approx(sum(each) / 2)
    assert perplexity.value == pytest.approx(torch.tensor(mean.value).exp().item())
    assert not mean.higher_is_better


def test_labels_are_predicted_in_the_order_of_the_rows(classifier: Any, tokenizer: Any) -> None:
    task = make_task(DataConfig(task="classification"), ("a", "b", "c"))
    rows = [{"text": "word " * n, "label": "a"} for n in (1, 9, 4, 2, 7)]

    together = task.predictions(classifier, tokenizer, rows, batch_size=2)

    alone = [task.predictions(classifier, tokenizer, [row])[0] for row in rows]
    assert together == alone
    assert evaluate(task, classifier, tokenizer, rows).value == together.count("a") / 5
