"""LoRA-SB's start by whose rows it is made from: subspace, score, bytes and ε.

    python -m benchmarks.start_sources --minutes 30

Fed-SB on the embedded model, with equal clients and with unequal ones (Dirichlet), once trained
plainly and once with ε = 3 for everything. The reference of a start is the estimate from all
clients' rows in one place: their summed gradient G of each adapted weight, which the sketches
approximate, and the paper's update, the sign of G. The overlap of two subspaces of dimension r is
the mean squared cosine of their principal angles, ‖UᵀV‖² / r, here the mean over the adapted
layers, left (columns of B) and right (rows of A). Random subspaces have r / m and r / n.

Finished runs are kept in benchmarks/results/start_sources.jsonl and not repeated.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from benchmarks.tables import CONF, Line, federation, fill, markdown, spread
from fedtuners.adapters.gradients import weight_gradients
from fedtuners.config import Config, compose, make_adapter
from fedtuners.demo import rows
from fedtuners.privacy import epsilon, make_plan
from fedtuners.results import saved_state
from fedtuners.tasks import batches, load, partition
from fedtuners.tuned import TunedModel

RESULTS = Path("benchmarks/results/start_sources.jsonl")
OTHER = "public, commands of other kinds"
SOURCES = {
    "server, from the base's weights": "adapter.init=weights",
    OTHER: "start.source=public start.split=old start.rows=400",
    "public, commands of the same kinds": "start.source=public start.data={public} start.rows=400",
    "clients, federated": "start.source=clients start.rows={rows}",
}
ROWS = {"none": 100, "example": 600}  # of each client: noise wants all that it can get
PARTITIONS = ("iid", "dirichlet")
COMMON = [
    *("strategy=fed_sb", "adapter=lora_sb", "adapter.rank=16", "federation.rounds=4"),
    *("train.steps=10", "train.batch_size=16", "train.learning_rate=2e-2"),
    *("data.train_rows=2400", "data.test_rows=200", "data.metric=loss", "evaluation.every=99"),
    "partition.minimum_rows=100",
]
Subspaces = dict[str, tuple[Tensor, Tensor]]
"""Of each module, orthonormal columns: left (m, r), right (n, r)."""


def main() -> None:
    """Run what is missing while there is time, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parsed = parser.parse_args()
    wanted = (
        {"source": source, "partition": dealt, "privacy": privacy, "seed": seed}
        for privacy, seed, dealt, source in product(ROWS, parsed.seeds, PARTITIONS, SOURCES)
        if privacy == "none" or source != OTHER
    )
    print(table(fill(parsed.results, wanted, measured, parsed.minutes)))


def measured(key: Line) -> Line:
    """One federation: overlaps of its start, score, bytes, ε of the start and of everything."""
    seed, privacy = int(key["seed"]), str(key["privacy"])
    with tempfile.TemporaryDirectory() as folder:
        public = Path(folder) / "public.jsonl"
        lines = map(json.dumps, rows("train", 500, seed=1000 + seed))
        public.write_text("\n".join(lines), encoding="utf-8")
        source = SOURCES[key["source"]].format(public=public, rows=ROWS[privacy])
        words = [f"partition={key['partition']}", *COMMON, f"privacy={privacy}", *source.split()]
        words += [f"seed={seed}", f"partition.seed={seed}"]
        with federation(words) as (summary, run):
            config = compose(words, CONF)
            found = subspaces(saved_state(make_adapter(config), run / "adapter"))
    return {
        **{f"overlap_{name}": overlaps(found, of) for name, of in pooled(seed).items()},
        "loss": summary["final"],
        "start_bytes": summary["bytes"]["initialisation"],
        "epsilon": summary["privacy"].get("epsilon"),
        "start_epsilon": start_cost(config) if privacy == "example" else None,
        "noise_multiplier": summary["privacy"].get("noise_multiplier"),
        "seconds": summary["seconds"]["total"],
    }


def subspaces(state: Mapping[str, Tensor]) -> Subspaces:
    """The spaces between which an adapter's R maps, of each module."""
    modules = [name.removesuffix(".lora_sb_R") for name in state if name.endswith(".lora_sb_R")]
    factors = {m: (state[f"{m}.lora_sb_B"], state[f"{m}.lora_sb_A"].T) for m in modules}
    return {m: (torch.linalg.qr(B).Q, torch.linalg.qr(A).Q) for m, (B, A) in factors.items()}


def overlaps(found: Subspaces, exact: Subspaces) -> tuple[float, float]:
    """Left and right: ‖UᵀV‖² / r, the mean over the modules."""
    left, right = (
        sum(
            float((found[module][side].T @ spaces[side]).square().sum() / spaces[side].shape[1])
            for module, spaces in exact.items()
        )
        / len(exact)
        for side in (0, 1)
    )
    return left, right


@cache
def pooled(seed: int) -> dict[str, Subspaces]:
    """The top singular spaces of the gradient over all clients' rows, and of its sign."""
    config = compose([*COMMON, f"seed={seed}"], CONF)
    tuned = TunedModel(config)
    encoded = tuned.task.encode(load(config.data, seed).train, tuned.tokenizer)
    drawn = list(batches(encoded, tuned.pad, 50, len(encoded) // 50, (seed, 0, 0)))
    gradients = weight_gradients(tuned.model, drawn, tuned.summed_loss, list(tuned.shapes))
    rank = max(tuned.adapter.module_ranks())
    return {
        "gradient": {name: _top(G, rank) for name, G in gradients.items()},
        "sign": {name: _top(G.sign(), rank) for name, G in gradients.items()},
    }


def _top(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    U, _, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank], Vh[:rank].T


def start_cost(config: Config) -> float:
    """ε of the start alone, the largest over the clients; 0 where their rows are not used."""
    clients, train = config.federation.clients, load(config.data, config.seed).train
    sizes = [len(partition(train, config.partition, clients, i)) for i in range(clients)]
    plans = [make_plan(config, size) for size in sizes]
    return max(epsilon(plan.events(0), plan.delta, config.privacy.accountant) for plan in plans)


def table(done: list[Line]) -> str:
    """Markdown: means over the seeds, the loss ± standard deviation, overlaps as left / right."""
    head = ["start from", "clients", "ε", "of it the start", "overlap with G", "with sign(G)"]
    head += ["test loss", "start, MB"]
    body = []
    for privacy, dealt, source in product(ROWS, PARTITIONS, SOURCES):
        key = {"source": source, "partition": dealt, "privacy": privacy}
        lines = [line for line in done if key.items() <= line.items()]
        if not lines:
            continue
        body.append(
            [
                *(source, dealt, *_cost(lines)),
                *(_sides([line[f"overlap_{of}"] for line in lines]) for of in ("gradient", "sign")),
                spread([line["loss"] for line in lines], 2),
                spread([line["start_bytes"] / 1e6 for line in lines[:1]], 2),
            ]
        )
    return markdown(head, body)


def _cost(lines: list[Line]) -> tuple[str, str]:
    """ε of everything and of the start alone, the largest over the seeds."""
    if lines[0]["epsilon"] is None:
        return "∞", "–"
    return tuple(
        f"{max(line[name] for line in lines):.2f}" for name in ("epsilon", "start_epsilon")
    )


def _sides(pairs: list[tuple[float, float]]) -> str:
    return " / ".join(f"{mean(pair[side] for pair in pairs):.2f}" for side in (0, 1))


if __name__ == "__main__":
    main()
