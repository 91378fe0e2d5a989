"""Every strategy with each of its adapters on the embedded model, several seeds: README's table.

    python -m benchmarks.strategies --seeds 0 1 2

Finished runs are kept in benchmarks/results/strategies.jsonl and not repeated. Beside them stand
the two limits of a federation: each client alone, and all rows in one place.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from peft import PeftModel

from fedtuners.baselines import baseline
from fedtuners.config import Config, compose
from fedtuners.tasks import evaluate, load, make_task

RESULTS = Path("benchmarks/results/strategies.jsonl")
COMBINATIONS = (
    ("fed_sb", "lora_sb"),
    ("fedex_lora", "lora"),
    ("fedavg_lora", "lora"),
    ("ffa_lora", "lora"),
    ("fedex_lora", "abba"),
    ("fedavg_lora", "abba"),
    ("ffa_lora", "abba"),
)
BASELINES = {"each client alone": "alone", "all rows in one place": "centralised"}
ORDER = ("fed_sb", "fedex_lora", "fedavg_lora", "ffa_lora", *BASELINES)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a thread each")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for every run")
    parsed = parser.parse_args()
    done = read()
    wanted = [
        (strategy, adapter, seed, parsed.overrides)
        for seed in parsed.seeds
        for strategy, adapter in (*COMBINATIONS, *((name, "lora_sb") for name in BASELINES))
        if not _find(done, strategy, adapter, seed)
    ]
    with ProcessPoolExecutor(parsed.jobs, multiprocessing.get_context("spawn")) as pool:
        for line in pool.map(one, wanted):
            print(f"{line['strategy']} {line['adapter']} seed {line['seed']}: {line['final']:.3f}")
    print(table(read()))


def one(wanted: tuple[str, str, int, list[str]]) -> dict[str, Any]:
    """One run or baseline, in a process and a thread of its own, added to the results."""
    strategy, adapter, seed, overrides = wanted
    torch.set_num_threads(1)
    if strategy in BASELINES:
        line = local(strategy, seed, overrides)
    else:
        line = federated(strategy, adapter, seed, overrides)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return line


def read() -> list[dict[str, Any]]:
    """The runs that are already there."""
    return (
        [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    )


def federated(strategy: str, adapter: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """One federation in this process: server, clients and messages are those of a deployment."""
    from client_app import handlers
    from server_app.local import InProcessGrid
    from server_app.run import run

    words = [f"strategy={strategy}", f"adapter={adapter}", f"seed={seed}", *overrides]
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"FEDTUNERS_STATE": f"{folder}/state", "FEDTUNERS_OUTPUTS": f"{folder}/runs"}
        config = compose(words, Path("conf"))
        summary = run(
            config, InProcessGrid(config.federation.clients, handlers.answer), "benchmark"
        )
        old = _old(config, Path(folder) / "runs" / "latest" / "lora")
    kept = ("initial", "by_round", "final", "trainable_parameters", "bytes", "seconds")
    line = {"strategy": strategy, "adapter": adapter, "seed": seed, "old": old}
    return line | {key: summary[key] for key in kept}


def local(name: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """LoRA-SB without a federation: each client alone (their mean score), or all rows together."""
    config = compose([f"seed={seed}", *overrides], Path("conf"))
    _, _, trained = baseline(BASELINES[name], config)
    scores = [one.score for one in trained]
    line = {"strategy": name, "adapter": "lora_sb", "seed": seed, "each": scores}
    return line | {"final": mean(scores)}


def table(done: Iterable[dict[str, Any]]) -> str:
    """A Markdown table: mean ± sd over the seeds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in sorted(done, key=lambda line: ORDER.index(line["strategy"])):
        groups[line["strategy"], line["adapter"]].append(line)
    columns = ("strategy", "adapter", "exact match", "old commands", "trained numbers")
    sizes_head = ("up kB", "down kB", "start kB", "total kB", "seconds")
    rows = ["| " + " | ".join(columns + sizes_head) + " |", "|" + "---|" * 10]
    for (strategy, adapter), lines in groups.items():
        final = _spread([line["final"] for line in lines])
        if "bytes" not in lines[0]:
            rows.append(f"| {strategy} | {adapter} | {final} |" + " |" * 7)
            continue
        seconds = f"{mean(line['seconds']['total'] for line in lines):.0f}"
        old = _spread([line["old"] for line in lines])
        sizes = {key: mean(line["bytes"][key] for line in lines) for key in lines[0]["bytes"]}
        kilobytes = " | ".join(f"{size / 1000:,.0f}" for size in sizes.values())
        trained = f"{lines[0]['trainable_parameters']:,}"
        rows.append(
            f"| {strategy} | {adapter} | {final} | {old} | {trained} | {kilobytes} | {seconds} |"
        )
    return "\n".join(rows)


def _old(config: Config, adapter: Path) -> float:
    """Exact match on commands of the kinds that the base model was pretrained on."""
    data = replace(config.data, test_split="old")
    task = make_task(data)
    base, tokenizer = task.load_base(config.model)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    return evaluate(task, model, tokenizer, load(data, config.seed).test).value


def _find(done: list[dict[str, Any]], strategy: str, adapter: str, seed: int) -> bool:
    key = (strategy, adapter, seed)
    return any((line["strategy"], line["adapter"], line["seed"]) == key for line in done)


def _spread(values: list[float]) -> str:
    """mean ± standard deviation, to two figures."""
    deviation = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{deviation}"


if __name__ == "__main__":
    main()
