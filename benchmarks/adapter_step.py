"""One training step of LoRA-SB and of ABBA beside stock PEFT LoRA, all linear layers adapted.

    python -m benchmarks.adapter_step --model demo

Time, arithmetic, what the forward pass keeps for the backward pass, and the peak of a step, the
optimiser's included. `--model 1b` is one decoder layer of Llama-3.2-1B's dimensions; the arithmetic
of the whole model at 4,096 tokens is counted without running it.
"""

from collections.abc import Callable

import torch
from peft import LoHaConfig, get_peft_model
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks import models
from benchmarks.harness import Row, flops, interleaved, parser, peak_bytes, report, saved_bytes
from fedtuners.adapters import Abba, Adapter, Lora, LoraSb
from fedtuners.tasks import ModelConfig
from fedtuners.tasks.models import load_causal_lm

BASES: dict[str, Callable[[], nn.Module]] = {
    "demo": lambda: load_causal_lm(ModelConfig(name="demo"))[0],
    "1b": lambda: models.llama_1b(layers=1, vocabulary=1024),
}
MB = 2**20


def subjects(base: Callable[[], nn.Module], rank: int, small: int) -> dict[str, nn.Module]:
    """Every adapter on a base of its own; ABBA and LoHa have the parameters of LoRA's `small`."""
    half = small // 2
    methods: dict[str, Adapter] = {
        "LoRA": Lora(rank=rank, alpha=rank),
        "LoRA-SB": LoraSb(rank=rank, init="weights"),
        "equal LoRA": Lora(rank=small, alpha=small),
        "ABBA": Abba(rank1=half, rank2=half),
    }
    attached: dict[str, nn.Module] = {
        name: method.attach(base(), "causal_lm", seed=0) for name, method in methods.items()
    }
    naive = LoraSb(rank=rank, init="weights").attach(base(), "causal_lm", seed=0)
    for name, parameter in naive.named_parameters():
        parameter.requires_grad_("lora_sb_" in name)  # B and A too: gradients nobody uses
    loha = LoHaConfig(r=half, alpha=half, target_modules="all-linear")
    return {**attached, "naive": naive, "LoHa": get_peft_model(base(), loha)}


def trainer(model: nn.Module, ids: Tensor) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """(forward pass to the loss, whole training step)."""
    model.train()
    rows, length = ids.shape
    mask = torch.full((length, length), -1e9, device=ids.device).triu(1).expand(rows, 1, -1, -1)
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = AdamW(factors, lr=1e-4) if ids.device.type != "meta" else None

    def forward() -> Tensor:
        return model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss

    def step() -> None:
        forward().backward()
        if optimiser is not None:
            optimiser.step()
        model.zero_grad(set_to_none=True)

    return forward, step


def counted(tokens: int) -> dict[str, int]:
    """Arithmetic of a whole step of Llama-3.2-1B at rank 32, counted from its shapes alone."""
    with torch.device("meta"):
        ids = torch.zeros(tokens // 512, 512, dtype=torch.long)
        built = subjects(models.llama_1b, rank=32, small=32)
    return {name: flops(trainer(model, ids)[1]) for name, model in built.items()}


COMPARISONS = (
    ("LoRA-SB", "LoRA", "≤ .95", "< 1"),
    ("LoRA-SB", "naive", "< 1", "< 1"),
    ("ABBA", "equal LoRA", "≤ 1.10", "≤ 1.05"),
    ("ABBA", "LoHa", "< 1", "< 1"),
)


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--model", choices=BASES, default="demo")
    options.add_argument("--rank", type=int, default=32, help="of LoRA-SB and LoRA")
    options.add_argument("--small", type=int, default=8, help="LoRA's rank beside ABBA")
    options.add_argument("--rows", type=int, default=16)
    options.add_argument("--length", type=int, default=48, help="tokens of a row")
    parsed = options.parse_args()
    ids = torch.randint(3, 1000, (parsed.rows, parsed.length))
    built = subjects(BASES[parsed.model], parsed.rank, parsed.small)
    trained = {name: trainer(model, ids) for name, model in built.items()}
    kept = {name: saved_bytes(forward, built[name]) for name, (forward, _) in trained.items()}
    peak = {name: peak_bytes(step) for name, (_, step) in trained.items()}
    seconds = interleaved({name: step for name, (_, step) in trained.items()}, parsed.repeats)
    arithmetic = counted(tokens=4096)
    rows = []
    for name, other, quick, small in COMPARISONS:
        label = f"{name} / {other}"
        spread = f"{seconds[name]} / {seconds[other]}"
        time, reference = seconds[name].median, seconds[other].median
        rows += [
            Row(f"{label}: step", time, reference, "s", quick, spread),
            Row(f"{label}: peak", peak[name] / MB, peak[other] / MB, "MB", small),
            Row(f"{label}: kept for backward", kept[name] / MB, kept[other] / MB, "MB"),
            Row(f"{label}: 1B model", arithmetic[name] / 1e12, arithmetic[other] / 1e12, "TFLOP"),
        ]
    report(f"adapter_step_{parsed.model}", rows, vars(parsed), parsed.json)


if __name__ == "__main__":
    main()
