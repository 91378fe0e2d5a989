"""The pages in a real browser, as wide as a phone and a desk: nothing cut off, fetched or wrong."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import BROWSERS, browser, look
from small_runs import words

Verb = Callable[..., tuple[int, str, str]]
WIDTHS = {"phone": 390, "desk": 1280}
LEGIBLE = 9  # px, the least height of a line of text in a plot

pytestmark = pytest.mark.skipif(
    browser() is None, reason=f"no browser in PATH: install one of {', '.join(BROWSERS)}"
)


@pytest.fixture(scope="module")
def pages(fed_sb: Path, fedex: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pages of one run, of two, and of a comparison."""
    from fedtuners.cli.main import main

    folder = tmp_path_factory.mktemp("pages")
    over = ("--over", "strategy=fedavg_lora,ffa_lora", "--over", "seed=0,1")
    chosen = words(tiny, "adapter=lora", "adapter.rank=2")
    for command in (
        ["report", str(fed_sb), "--out", str(folder / "one.html")],
        ["report", str(fed_sb), str(fedex), "--out", str(folder / "two.html")],
        ["compare", *over, *chosen, "--out", str(folder / "comparison")],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert not stopped.value.code
    (folder / "comparison" / "report.html").rename(folder / "comparison.html")
    return folder


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["one", "two", "comparison"])
def test_a_page_fits_and_needs_nothing_else(
    pages: Path, name: str, width: str, tmp_path: Path
) -> None:
    seen = look(pages / f"{name}.html", WIDTHS[width], tmp_path / f"{name}-{width}.png")

    assert seen.width == WIDTHS[width]
    assert seen.smallest >= LEGIBLE
    assert seen.loaded == []
    assert seen.complaints == []
    assert size(seen.picture) == (max(WIDTHS[width], 500), 844)


def test_what_is_wrong_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    page.write_text(
        '<body style="margin:0"><div style="width:900px">wide</div>'
        '<svg><text style="font-size:4px">small</text></svg>'
        '<img src="https://example.org/picture.png"><script>console.error("no")</script>'
    )

    seen = look(page, 390, tmp_path / "wrong.png")

    assert seen.width == 900
    assert seen.smallest < LEGIBLE
    assert seen.loaded == ["https://example.org/picture.png"]
    assert any('"no"' in line for line in seen.complaints)


def size(picture: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    return width, height
