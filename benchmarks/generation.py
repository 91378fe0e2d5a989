"""Evaluation by generation: batches with a key-value cache, beside one prompt at a time without.

    python -m benchmarks.generation

Greedy text of the embedded model; both ways must say the same.
"""

import torch

from benchmarks.harness import Row, interleaved, parser, report
from fedtuners.tasks import DataConfig, ModelConfig, load
from fedtuners.tasks.encoding import encode_prompts, stop_ids
from fedtuners.tasks.formats import instruction
from fedtuners.tasks.generation import generate
from fedtuners.tasks.models import load_causal_lm


@torch.no_grad()
def alone(model: torch.nn.Module, prompt: list[int], most: int, stop: list[int]) -> list[int]:
    """One prompt, every token from the whole text."""
    said: list[int] = []
    while len(said) < most:
        ids = torch.tensor([[*prompt, *said]])
        token = int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax())
        if token in stop:
            break
        said.append(token)
    return said


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=24)
    options.add_argument("--new-tokens", type=int, default=24)
    parsed = options.parse_args()
    config = DataConfig(test_rows=parsed.rows, train_rows=8)
    model, tokenizer = load_causal_lm(ModelConfig(name="demo"))
    examples = [instruction(row, config) for row in load(config, 0).test]
    prompts = encode_prompts(examples, tokenizer, config.max_length, chat=False)
    stop, most = list(stop_ids(tokenizer, False)), parsed.new_tokens
    pad = int(tokenizer.pad_token_id)

    def together() -> list[list[int]]:
        return generate(model, prompts, most, stop, pad)

    def one_by_one() -> list[list[int]]:
        return [alone(model, list(prompt), most, stop) for prompt in prompts]

    said, expected = together(), one_by_one()
    same = sum(a == b for a, b in zip(said, expected, strict=True)) / len(prompts)
    assert same > 0.95  # two nearly equal scores may swap by rounding
    calls = {"together": together, "one by one": one_by_one}
    seconds = interleaved(calls, parsed.repeats, warm_up=0)
    batched, single = seconds["together"], seconds["one by one"]
    rows = [
        Row("time", batched.median, single.median, "s", "≤ 1/5", f"{batched} / {single}"),
        Row("share of equal answers", same, aim="1"),
        Row("tokens", sum(map(len, said)), sum(map(len, expected))),
    ]
    report("generation", rows, vars(parsed), parsed.json)


if __name__ == "__main__":
    main()
