"""The report is one page that needs nothing else and says what the run folder says."""

from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small_runs import contents

from fedtuners.report import page, scores_by_bytes
from fedtuners.results import read_run

Verb = Callable[..., tuple[int, str, str]]
VOID = {"meta", "br", "path", "use", "rect", "link"}


class Page(HTMLParser):
    """Tags in balance, their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_of_two_runs(fed_sb: Path, fedex: Path, verb: Verb, tmp_path: Path) -> None:
    before = contents(fed_sb) | contents(fedex)

    code, out, _ = verb("report", fed_sb, fedex, "--out", tmp_path / "both.html")

    read = Page((tmp_path / "both.html").read_text())
    assert code == 0
    assert "both.html" in out
    assert not read.open
    assert read.tags.count("svg") == 4
    assert "script" not in read.tags
    assert all(link.startswith("#") for link in read.links)
    assert fed_sb.name in read.text
    assert "fedex_lora" in read.text
    assert "Score against bytes" in read.text
    assert contents(fed_sb) | contents(fedex) == before


def test_the_plot_against_bytes_ends_at_the_summary_s_total(fedex: Path) -> None:
    run = read_run(str(fedex))

    megabytes = scores_by_bytes(run)[-1][0]

    assert megabytes * 1e6 == pytest.approx(run.summary["bytes"]["total"], abs=1)


def test_what_a_run_says_is_escaped(fed_sb: Path) -> None:
    run = read_run(str(fed_sb))
    evil = replace(run, summary=run.summary | {"strategy": "<script>alert(1)</script>"})

    assert "<script>" not in page([evil])


def test_a_report_goes_into_the_run_s_folder(fed_sb: Path, verb: Verb) -> None:
    code, _, _ = verb("report", fed_sb)

    assert code == 0
    assert (fed_sb / "report.html").is_file()
    (fed_sb / "report.html").unlink()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("summary.json", "has not finished"),
        ("metrics.jsonl", "cannot be read"),
    ],
)
def test_a_run_in_pieces_gives_one_sentence(
    fed_sb: Path, verb: Verb, tmp_path: Path, change: str, sentence: str
) -> None:
    for name, data in contents(fed_sb).items():
        if name != change and "/" not in name:
            (tmp_path / name).write_bytes(data)

    code, _, err = verb("report", tmp_path)

    assert code == 2
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_summary_gives_one_sentence(fed_sb: Path, verb: Verb, tmp_path: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / name).write_bytes((fed_sb / name).read_bytes())
    (tmp_path / "summary.json").write_text('{"strategy": ')

    code, _, err = verb("report", tmp_path)

    assert code == 2
    assert "cannot be read" in err
    assert len(err.strip().splitlines()) == 1


def test_a_place_that_cannot_be_written_leaves_nothing(fed_sb: Path, verb: Verb) -> None:
    code, _, err = verb("report", fed_sb, "--out", "/proc/report.html")

    assert code == 2
    assert len(err.strip().splitlines()) == 1
