"""The walk that README.md shows, word for word: from rows in a file to an adapter in use.

The commands and the program are read from the page. Only the sizes of the run are made small.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
APP = ("client_app", "server_app", "strategies", "conf", "pyproject.toml", "README.md", "LICENSE")
SMALL = "federation.rounds=2 train.steps=4 train.batch_size=8 start.rows=8 adapter.rank=8"
LONELY = "import sys; sys.modules['fedtuners'] = None  # whoever imports it fails\n"
SAVED = (
    "\nimport torch\ntorch.save((asked.input_ids, model(**asked).logits.detach()), 'logits.pt')\n"
)
TUNED = """
import sys, torch
from fedtuners.results import open_model
ids, _ = torch.load("logits.pt")
with open_model("latest", None).side("adapter") as network, torch.no_grad():
    torch.save(network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, "expected.pt")
"""


def section() -> dict[str, str]:
    """The walk's blocks of README.md, by language."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    walk = text.partition("## Your rows, from a file to an adapter in use\n")[2].partition("\n## ")[
        0
    ]
    return dict(re.findall(r"```(\w+)\n(.*?)```", walk, flags=re.DOTALL))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's apps, with rows like the page's one beside them."""
    folder = tmp_path_factory.mktemp("project")
    for name in APP:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (line,) = section()["json"].splitlines()
    rooms, states, things = ("hall", "attic", "porch", "cellar"), ("on", "off"), ("lamp", "fan")
    rows = [
        line.replace("hall", room).replace("on ", f"{state} ").replace("=on", f"={state}")
        for room, state, _ in product(rooms, states, things)
    ]
    rows = [row.replace("lamp", things[i % 2]) for i, row in enumerate(rows)] * 2
    assert all(json.loads(row) for row in rows)
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_the_walk(project: Path, flower: dict[str, str]) -> None:
    blocks = section()
    commands = blocks["bash"].splitlines()
    assert [line.split()[1] for line in commands] == ["run", "report", "export", "generate", "chat"]
    said = {}

    for line in commands:
        verb = line.split()[1]
        said[verb] = shell(f"{line} {SMALL}" if verb == "run" else line, project, flower)
    (project / "plain.py").write_text(LONELY + blocks["python"] + SAVED, encoding="utf-8")
    (project / "tuned.py").write_text(TUNED, encoding="utf-8")
    plain = shell(f"{sys.executable} plain.py", project, flower)
    shell(f"{sys.executable} tuned.py", project, flower)

    folder = Path(re.findall(r"run folder: (/\S+)", said["run"])[-1])
    assert (folder / "report.html").stat().st_size > 1000
    assert "exact" in said["export"]
    _, logits = torch.load(project / "logits.pt")
    torch.testing.assert_close(logits, torch.load(project / "expected.pt"), atol=1e-3, rtol=1e-3)
    asked, _, tuned = said["generate"].partition("adapter:")
    assert "base:" in asked
    assert plain.strip().splitlines()[1:] == tuned.strip().splitlines()
    assert said["chat"].count("base: ") == said["chat"].count("adapter: ") == 2
    assert "\x1b" not in said["run"]


def shell(line: str, folder: Path, flower: dict[str, str]) -> str:
    """What a line of shell prints, two lines of text on its stdin; it must succeed."""
    own = os.pathsep.join([str(Path(sys.executable).parent), flower["PATH"]])
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=flower | {"PATH": own},
        input="turn on the lamp in the attic\nturn off the fan\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
