"""What a comparison varies. A *cell* is the overrides by which one run differs from the others.

Its words are of three kinds: the seed, those that say the method (strategy, adapter, …), and the
rest, the setting (partition, data, …). Methods stand side by side within a setting; seeds are what
is averaged over, and what is paired.
"""

from collections.abc import Sequence
from itertools import product

from fedtuners.baselines import BASELINES

Cell = tuple[str, ...]
METHOD = ("strategy", "adapter", "aggregation", "privacy", "start", "train")


def cells(over: Sequence[str], cases: Sequence[str] = ()) -> list[Cell]:
    """Every case with every combination of `key=a,b,c` words.

    A case is several overrides that belong together, `strategy=fed_sb adapter=lora_sb`.

    Raises:
        ValueError: for a word without choices.
    """
    for word in over:
        key, _, values = word.partition("=")
        if set("[]{}") & set(values):
            raise ValueError(f"--over {word}: a list is not cut at its commas; use --case for each")
        if not key or not all(values.split(",")):
            raise ValueError(f"--over {word}: write key=first,second")
    for word in (word for case in cases for word in case.split() or [case]):
        if not all(word.partition("=")):
            raise ValueError(f"--case {word}: write key=value, several of them between quotes")
    axes = [word.partition("=") for word in over]
    chosen = list(product(*(values.split(",") for _, _, values in axes)))
    return [
        (*case.split(), *(f"{key}={value}" for (key, _, _), value in zip(axes, row, strict=True)))
        for case in (cases or [""])
        for row in chosen
    ]


def with_baselines(found: Sequence[Cell]) -> list[Cell]:
    """The cells, and both baselines of each adapter, setting and seed among them."""
    apart = ("strategy=", "aggregation=")
    rests = dict.fromkeys(tuple(w for w in cell if not w.startswith(apart)) for cell in found)
    added = [(f"strategy={kind}", *rest) for kind in BASELINES for rest in rests]
    return list(dict.fromkeys([*found, *added]))


def baseline_of(cell: Cell) -> str | None:
    """The baseline that a cell asks for in place of a strategy."""
    return next((kind for kind in BASELINES if f"strategy={kind}" in cell), None)


def part(cell: Cell, kind: str) -> Cell:
    """The cell's words of a kind: seed, method or setting."""
    return tuple(word for word in cell if _kind(word) == kind)


def _kind(word: str) -> str:
    first = word.lstrip("+~").partition("=")[0].partition(".")[0]
    return "seed" if first == "seed" else "method" if first in METHOD else "setting"


def label(words: Cell) -> str:
    """Words as people say them: `strategy=fed_sb adapter.rank=8` is `fed_sb rank=8`.

    Of what stands before a dot only `adapter` goes: `train.batch_size` is not `start.batch_size`.
    """
    short = []
    for word in words:
        key, _, value = word.partition("=")
        named = f"{key.removeprefix('adapter.')}={value}"
        short.append(value if key in ("strategy", "adapter", "partition") else named)
    return " ".join(short) or "all"
