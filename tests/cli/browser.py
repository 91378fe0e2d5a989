"""A page in a real headless browser: its width, what it loaded, what it complained of, a picture.

The page is put into a frame as wide as a phone or a desk, since the browser's own window has a
least width.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="frame" style="border:0;width:{width}px;height:{height}px" srcdoc="{page}"></iframe>
<pre id="seen"></pre>
<script>
const frame = document.getElementById("frame");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const texts = [...page.querySelectorAll("svg text")].map(t => t.getBoundingClientRect().height);
  document.getElementById("seen").textContent = JSON.stringify({{
    width: root.scrollWidth,
    height: root.scrollHeight,
    smallest: Math.min(...texts),
    loaded: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
  }});
}};
</script>"""


@dataclass(frozen=True)
class Seen:
    """What the browser saw of a page."""

    width: int  # of all that can be scrolled to, in px
    height: int
    smallest: float  # height of a text in the plots, in px
    loaded: list[str]  # addresses of everything fetched besides the page
    complaints: list[str]  # lines of its console
    picture: Path


def browser() -> str | None:
    """A browser in PATH that can work without a screen."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def look(page: Path, width: int, picture: Path, height: int = 844) -> Seen:
    """Open a page as wide as `width` px, and take a picture of its first `height` px."""
    program = browser()
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.html"
        text = escape(page.read_text(encoding="utf-8"))
        frame.write_text(FRAME.format(width=width, height=height, page=text), encoding="utf-8")
        command = [
            *(program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"),
            *(f"--user-data-dir={folder}/profile", f"--window-size={max(width, 500)},{height}"),
            *("--virtual-time-budget=5000", frame.as_uri()),
        ]
        environment = os.environ | {"HOME": folder}
        _run([*command[:-1], f"--screenshot={picture}", command[-1]], environment)
        done = _run([*command[:-1], "--dump-dom", command[-1]], environment)
    found = re.search(r'<pre id="seen">(\{.*?\})</pre>', done.stdout)
    assert found, done.stdout[:500] + done.stderr[-2000:]
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(**json.loads(unescape(found[1])), complaints=complaints, picture=picture)


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
