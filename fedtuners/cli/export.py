"""Write a run's result for use elsewhere: a stock PEFT LoRA, or a merged Hugging Face model.

fedtuners export latest --to lora --max-rank 64
fedtuners export latest --to merged --out my-model
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `fedtuners export`."""
    parser.add_argument("run", help="a run: its folder, its name in the outputs folder, or latest")
    parser.add_argument("--to", choices=("lora", "merged"), required=True)
    parser.add_argument("--max-rank", type=int, metavar="N", help="truncate the LoRA to this rank")
    parser.add_argument("--out", type=Path, help="a new folder (default: in the run folder)")
    parser.add_argument("--device", help="where to merge: auto, cpu, cuda, … (default: the run's)")


def main(parsed: argparse.Namespace) -> int:
    """Export and say how exact it is; returns the exit code."""
    from fedtuners.export import to_lora, to_merged
    from fedtuners.results import read_run

    run = read_run(parsed.run)
    rank = "" if parsed.max_rank is None else f"-rank{parsed.max_rank}"
    out = (parsed.out or run.path / f"export-{parsed.to}{rank}").expanduser()
    if parsed.to == "merged":
        if parsed.max_rank is not None:
            raise ValueError("--max-rank is for --to lora: a merged model has no rank")
        difference = to_merged(run, out, parsed.device)
        print(f"merged; the largest change of a logit by merging is {difference:.1e}")
    else:
        errors = to_lora(run, out, parsed.max_rank)
        module, worst = max(errors.items(), key=lambda pair: pair[1])
        print("exact" if worst == 0 else f"truncated: relative error up to {worst:.3g} ({module})")
    print(f"wrote {out}")
    return 0
