"""One answer to one text, from the base, the adapter, or both.

fedtuners generate latest "please book a table for two"
fedtuners generate latest premise="A man sleeps." hypothesis="A man is awake."
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedtuners.results import Model, Side


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `fedtuners generate`."""
    parser.add_argument("run", help="a run: its folder, its name in the outputs folder, or latest")
    parser.add_argument("text", nargs="+", help='the text, or column="text" for each column')
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What generate and chat have in common."""
    parser.add_argument("--side", choices=("base", "adapter", "both"), default="both")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="default: the run's")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    parser.add_argument("--device", help="auto, cpu, cuda, … (default: the run's)")


def main(parsed: argparse.Namespace) -> int:
    """Load the run, answer once; returns the exit code."""
    from fedtuners import talk
    from fedtuners.results import open_model, read_run

    check_options(parsed)
    given = talk.fields(parsed.text, read_run(parsed.run).config.data)
    model = open_model(parsed.run, None, parsed.device)
    for side in chosen(model, parsed.side):
        if len(chosen(model, parsed.side)) > 1:
            print(f"{side}:")
        if model.task.kind == "classification":
            for label, chance in talk.classify(model, side, given):
                print(f"{label} {chance:.3f}")
        else:
            answer(model, side, given, [], parsed)
    return 0


def check_options(parsed: argparse.Namespace) -> None:
    """Raise ValueError for numbers that cannot be."""
    if parsed.max_new_tokens is not None and parsed.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {parsed.max_new_tokens} must be at least 1")
    if parsed.temperature < 0:
        raise ValueError(f"--temperature {parsed.temperature} must be at least 0")


def chosen(model: "Model", side: str) -> "list[Side]":
    """The sides to ask."""
    return [one for one in model.sides if side in ("both", one)]


def answer(
    model: "Model",
    side: "Side",
    given: dict[str, str],
    history: list[tuple[str, str]],
    parsed: argparse.Namespace,
) -> str:
    """Print one side's answer as it comes, and return it."""
    from transformers import TextStreamer

    from fedtuners import talk

    return talk.generate(
        model,
        side,
        talk.example(given, model.config.data, history),
        max_new_tokens=parsed.max_new_tokens,
        temperature=parsed.temperature,
        streamer=TextStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
