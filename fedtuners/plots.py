"""Plots of a report as inline SVG: lines with bands, and stacked bars. Text stays text."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

Lines = Mapping[str, Sequence[tuple[float, float]]]  # points by name
Bands = Mapping[str, Sequence[tuple[float, float, float]]]  # x, low, high by name
INSIDE = 6  # names that a legend has room for within the axes


def figure(
    lines: Lines,
    x: str,
    y: str,
    bands: Bands | None = None,
    levels: Mapping[str, float] | None = None,
) -> str:
    """Lines, bands of their names around them, and dashed levels, as SVG with text as text.

    What is on the x axis is drawn in powers of ten where it spans more than two of them.
    """
    with _drawing([*lines, *(levels or {})]) as (drawn, axes):
        for name, points in lines.items():
            (line,) = axes.plot(*_columns(points, 2), marker="o", markersize=4, label=name)
            spread = (bands or {}).get(name)
            if spread:
                xs, low, high = _columns(spread, 3)
                axes.fill_between(xs, low, high, color=line.get_color(), alpha=0.15)
        for index, (name, level) in enumerate((levels or {}).items(), len(lines)):
            axes.axhline(level, linestyle="--", color=f"C{index}", label=name)
        positive = [at for points in lines.values() for at, _ in points if at > 0]
        if positive and max(positive) > 100 * min(positive):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")  # exponents would be too small to read
        axes.grid(alpha=0.3)
        return _svg(drawn, axes, x, y)


def bars(counts: Mapping[str, Sequence[int]], x: str, y: str, most: int = 9) -> str:
    """Stacked bars over 0, 1, …, a colour a name; the names beyond the first `most` are one."""
    named = dict(list(counts.items())[: most if len(counts) > most + 1 else None])
    rest = [values for name, values in counts.items() if name not in named]
    if rest:
        named[f"{len(rest)} others"] = [sum(column) for column in zip(*rest, strict=True)]
    with _drawing(list(named)) as (drawn, axes):
        below = [0] * len(next(iter(named.values())))
        for name, values in named.items():
            axes.bar(range(len(values)), values, bottom=below, label=name)
            below = [a + b for a, b in zip(below, values, strict=True)]
        return _svg(drawn, axes, x, y)


@contextmanager
def _drawing(names: Sequence[str]) -> Iterator[tuple[Any, Any]]:
    """A figure with room below it for a legend of many names, and its empty axes."""
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure  # slow to import

    plain: Any = {"svg.fonttype": "none", "svg.hashsalt": "fedtuners", "font.family": "sans-serif"}
    colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    plain["axes.prop_cycle"] = cycler(color=colours)
    below = len(names) / _columns_of(names) if len(names) > INSIDE else 0
    with matplotlib.rc_context(plain):
        drawn = Figure(figsize=(4.8, 3.2 + 0.2 * below), layout="constrained")
        yield drawn, drawn.subplots()


def _svg(drawn: Any, axes: Any, x: str, y: str) -> str:
    """The figure with labels and legend, as a part of a page."""
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel=x, ylabel=y.replace("_", " "))
    if x == "round" or x.startswith("client"):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    names = axes.get_legend_handles_labels()[1]
    if len(names) > INSIDE:
        drawn.legend(fontsize="small", loc="outside lower left", ncols=_columns_of(names))
    elif len(names) > 1:
        axes.legend(fontsize="small")
    written = io.StringIO()
    drawn.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return f'<figure aria-label="{escape(f"{y} by {x}")}">{svg}</figure>'


def _columns_of(names: Sequence[str]) -> int:
    """Of a legend: as many as the longest name leaves room for, three at most."""
    return max(1, min(3, 60 // (max(map(len, names)) + 6)))


def _columns(points: Sequence[Sequence[float]], width: int) -> list[list[float]]:
    return [[point[i] for point in points] for i in range(width)]
