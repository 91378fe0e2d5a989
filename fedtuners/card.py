"""The model card beside a run's adapter: what it is, what it cost, how to make it again.

Hugging Face's format: a YAML head that the hub reads, then Markdown.
"""

import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedtuners.config import Config
from fedtuners.reproduce import command

PACKAGES = ("fedtuners", "torch", "transformers", "peft", "flwr", "datasets")
PIPELINES = {"causal_lm": "text-generation", "classification": "text-classification"}
METHODS = {
    "lora": "LoRA",
    "lora_sb": "LoRA-SB (its own PEFT type: `import fedtuners.adapters` before loading)",
    "abba": "ABBA (its own PEFT type: `import fedtuners.adapters` before loading)",
}


def write_cards(run: Path, config: Config, summary: dict[str, Any], conf: Path) -> None:
    """Write README.md into a run's `adapter/` and `lora/`, in place of PEFT's template."""
    made_by = command(config, conf)
    for folder in ("adapter", "lora"):
        if (run / folder).is_dir():
            part = run / folder / ".README.md.part"
            part.write_text(card(config, summary, made_by, folder, _base(run / folder)), "utf-8")
            os.replace(part, run / folder / "README.md")


def card(
    config: Config, summary: dict[str, Any], made_by: str, folder: str, base: str | None = None
) -> str:
    """The card's text.

    Args:
        config: the run's.
        summary: of summary.json.
        made_by: the command that makes this run again.
        folder: "adapter" (the method's own format) or "lora" (stock).
        base: the base model as adapter_config.json names it.
    """
    head = {
        "base_model": base or config.model.name,
        "library_name": "peft",
        "pipeline_tag": PIPELINES[config.data.task],
        "tags": ["federated-learning", summary["strategy"], summary["adapter"]],
    }
    form = METHODS.get(summary["adapter"], summary["adapter"]) if folder == "adapter" else "LoRA"
    title = f"{summary['strategy']} adapter of {config.model.name} for {config.data.source}"
    return "\n".join(
        [
            *("---", OmegaConf.to_yaml(OmegaConf.create(head)).strip(), "---", ""),
            *(f"# {title}", ""),
            f"Format: {form}, in PEFT's files."
            + (" Loads with stock PEFT alone." if form == "LoRA" else ""),
            *("", "|   |   |", "|---|---|"),
            *(f"| {name} | {value} |" for name, value in _rows(config, summary).items()),
            *("", "Made by, and to be made again by:", "", "```", made_by, "```", ""),
            f"Versions: {', '.join(f'{name} {number}' for name, number in versions().items())}.",
            "",
        ]
    )


def versions() -> dict[str, str]:
    """The versions of the packages that a result depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _rows(config: Config, summary: dict[str, Any]) -> dict[str, str]:
    sent = summary["bytes"]
    precision = ", ".join(filter(None, (config.model.dtype, config.model.quantization)))
    return {
        "Base model": f"{config.model.name} ({precision})",
        "Data": f"{config.data.source}, dealt {config.partition.kind}",
        "Strategy": f"{summary['strategy']} with {summary['adapter']}",
        "Rounds": str(summary["rounds"]),
        "Clients": str(summary["clients"]),
        "Trained numbers a client": f"{summary['trainable_parameters']:,}",
        "Bytes, client and round": f"{sent['up_per_client_round']:,} up, "
        f"{sent['down_per_client_round']:,} down",
        "Bytes, start": f"{sent['initialisation']:,}",
        "Bytes, all": f"{sent['total']:,}",
        f"{summary['metric']}, held-out": f"{summary['initial']:.4f} before, "
        f"{summary['final']:.4f} after",
        "Privacy": privacy(summary),
        "Seed": str(config.seed),
    }


def privacy(summary: dict[str, Any]) -> str:
    """ε, δ and what else the summary says of privacy; that there is no guarantee, if nothing."""
    found = summary.get("privacy") or {
        key: summary[key] for key in ("epsilon", "delta") if key in summary
    }
    if not found or found.get("protects") == "none":
        return "no differential privacy: no guarantee"
    names = {"epsilon": "ε", "delta": "δ"}
    return ", ".join(
        f"{names.get(key, key)} = {value:.6g}"
        if isinstance(value, float)
        else f"{names.get(key, key)} = {value}"
        for key, value in found.items()
        if isinstance(value, str | int | float)
    )


def _base(folder: Path) -> str | None:
    written = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return written.get("base_model_name_or_path")
