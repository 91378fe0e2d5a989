"""Bytes on the wire: every strategy at the papers' models and ranks, and measured on the demo.

    python -m benchmarks.wire

The papers' models are counted from their shapes. On the embedded model whole federations run in
this process, and what their messages weigh is set beside their tensors' own bytes.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks import models
from benchmarks.harness import ROOT, Row, parser, report
from fedtuners.adapters import Adapter, Lora, LoraSb
from fedtuners.adapters.linear import in_out_features
from fedtuners.adapters.state import modules, named_parameters
from fedtuners.config import compose
from strategies.packing import manifest as names_of
from strategies.packing import pack, unpack

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MILLION = 10**6
SMALL = [
    *("federation.rounds=2", "federation.clients=2", "train.steps=2", "start.rows=16"),
    *("data.test_rows=4", "data.max_new_tokens=4", "data.train_rows=200"),
]


@dataclass(frozen=True)
class Published:
    """One setting of a paper's table, in millions of communicated parameters."""

    make: Callable[[], nn.Module]
    task: str
    targets: list[str]
    clients: int
    rank: int  # of LoRA
    core: int  # of LoRA-SB
    fedit: float
    ffa: float
    fedex: float
    fed_sb: float


PAPER = {
    "Mistral-7B": Published(
        models.mistral_7b, "causal_lm", PROJECTIONS, 25, 32, 200, 83.89, 41.94, 2097, 8.96
    ),
    "Gemma-2-9B": Published(
        models.gemma_9b, "causal_lm", PROJECTIONS, 25, 32, 200, 108.04, 54.02, 2701, 11.76
    ),
    "Llama-3.2-3B": Published(
        models.llama_3b, "causal_lm", PROJECTIONS, 5, 32, 200, 48.63, 24.31, 243.15, 7.84
    ),
    "BERT-base": Published(
        models.bert_base,
        "classification",
        ["query", "value"],
        3,
        32,
        64,
        1.181,
        0.590,
        3.539,
        0.1006,
    ),
}


def numbers(model: nn.Module, factors: tuple[str, ...]) -> int:
    """Numbers of these factors in all modules, a trained head's included."""
    return sum(
        parameter.numel()
        for name, parameter in named_parameters(model).items()
        if name.rpartition(".")[2] in factors or not name.rpartition(".")[2].startswith("lora")
    )


def attached(setting: Published, adapter: Adapter) -> nn.Module:
    """The model of a setting with an adapter, without weights."""
    with torch.device("meta"):
        return adapter.attach(setting.make(), setting.task, seed=0)  # type: ignore[arg-type]


def counted(setting: Published, oversampling: int = 8) -> dict[str, float]:
    """Millions of numbers in one client's round, by strategy, and in LoRA-SB's start."""
    lora = attached(setting, Lora(rank=setting.rank, targets=setting.targets))
    core = attached(setting, LoraSb(rank=setting.core, targets=setting.targets))
    both = numbers(lora, ("lora_A", "lora_B"))
    sizes = [in_out_features(layer) for layer in modules(lora).values()]
    sides = sum(m + n for m, n in sizes)
    widths = [min(setting.core + oversampling, m, n) for m, n in sizes]
    sketches = sum((m + n) * k for (m, n), k in zip(sizes, widths, strict=True))
    residual = sides * (setting.clients - 1) * setting.rank
    return {
        "fedavg_lora": both / MILLION,
        "ffa_lora": numbers(lora, ("lora_B",)) / MILLION,
        "fedex_lora": (both + residual) / MILLION,
        "fed_sb": numbers(core, ("lora_sb_R",)) / MILLION,
        "start, up": sketches / MILLION,
        "start, down": (sketches / 2 + sides * setting.core) / MILLION,
    }


def paper_rows() -> list[Row]:
    """Our counts beside the papers', and how far Fed-SB is below FedEx-LoRA."""
    rows = []
    for model, setting in PAPER.items():
        found = counted(setting)
        published = {
            "fedavg_lora": setting.fedit,
            "ffa_lora": setting.ffa,
            "fedex_lora": setting.fedex,
            "fed_sb": setting.fed_sb,
        }
        rows += [
            Row(
                f"{model}: {name}",
                found[name],
                published.get(name),
                "M",
                "≤ 1.01" if name in published else "",
            )
            for name in found
        ]
        aim = "≥ 230" if setting.clients == 25 else ""
        begun = found["start, up"] + found["start, down"]
        rows += [
            Row(f"{model}: fedex_lora / fed_sb", found["fedex_lora"], found["fed_sb"], "M", aim),
            Row(
                f"{model}: the same after 10 rounds with the start, both ways",
                10 * (found["fedex_lora"] + found["fedavg_lora"]),
                10 * 2 * found["fed_sb"] + begun,
                "M",
            ),
        ]
    return rows


def measured_rows() -> list[Row]:
    """Federations of the embedded model: the bytes of their messages and those of their tensors."""
    from client_app import handlers
    from server_app.local import InProcessGrid
    from server_app.run import run

    rows: list[Row] = []
    for strategy, adapter in (
        ("fedavg_lora", "lora"),
        ("ffa_lora", "lora"),
        ("fedex_lora", "lora"),
        ("fed_sb", "lora_sb"),
        ("fedavg_lora", "abba"),
        ("fed_sb federation.wire_dtype=bfloat16", "lora_sb"),
    ):
        words = [f"adapter={adapter}", *f"strategy={strategy}".split(), *SMALL]
        summary = run(
            compose(words, ROOT / "conf"), InProcessGrid(2, handlers.answer), f"wire-{len(rows)}"
        )
        wide = 2 if "bfloat16" in strategy else 4
        own = wide * int(summary["trainable_parameters"])
        sent: Mapping[str, int] = summary["bytes"]
        aim = "" if strategy == "fedex_lora" else "≤ 1.01"
        rows += [
            Row(
                f"demo, {strategy} on {adapter}: up",
                sent["up_per_client_round"],
                own,
                "B",
                "≤ 1.01",
            ),
            Row(
                f"demo, {strategy} on {adapter}: down", sent["down_per_client_round"], own, "B", aim
            ),
            Row(
                f"demo, {strategy} on {adapter}: start, all clients",
                sent["initialisation"],
                None,
                "B",
            ),
        ]
    return rows


def rounding_rows() -> list[Row]:
    """What bfloat16 on the wire does to normal numbers."""
    draw = torch.Generator().manual_seed(0)
    state = {"x": torch.randn(10**6, generator=draw)}
    dtype = torch.bfloat16
    back = unpack(pack(state, dtype), names_of(state, dtype))["x"]
    error = (back - state["x"]).abs()
    relative = float((error / state["x"].abs()).max())
    assert relative <= 2**-8
    return [
        Row("bfloat16 wire: largest relative error of a number", relative, aim="≤ 2⁻⁸ = .0039"),
        Row("bfloat16 wire: relative error of a tensor", float(error.norm() / state["x"].norm())),
    ]


def main() -> None:
    """Count, run and report."""
    options = parser(__doc__)
    options.add_argument("--shapes-only", action="store_true", help="run nothing")
    parsed = options.parse_args()
    rows = paper_rows() + rounding_rows()
    if not parsed.shapes_only:
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        with tempfile.TemporaryDirectory() as folder:
            os.environ["FEDTUNERS_STATE"] = str(Path(folder) / "state")
            os.environ["FEDTUNERS_OUTPUTS"] = str(Path(folder) / "outputs")
            rows += measured_rows()
    report("wire", rows, vars(parsed), parsed.json)


if __name__ == "__main__":
    main()
