"""Write docs/configuration.md from the schema: python docs/configuration.py

Every key, its type and its default come from the dataclasses; what a key is for is the comment
beside it there.
"""

import inspect
import io
import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from token import NAME, NEWLINE
from tokenize import COMMENT, generate_tokens
from typing import Any, get_args, get_type_hints

from hydra.utils import get_class
from omegaconf import OmegaConf

from fedtuners.config import Config

DOCS = Path(__file__).resolve().parent
CONF = DOCS.parent / "conf"
HEAD = """# Configuration reference

A run is composed from `conf/` by Hydra; any key can be set on the command line:
`fedtuners run strategy=fedex_lora adapter=lora federation.rounds=20`. A group such as `strategy=`
picks a file of its folder; a dotted key sets one value. What is mistyped is refused with the keys
or choices that there are. `fedtuners plan` with the same words says what such a run takes.

This page is written from the schema by `python docs/configuration.py`.
"""


def text() -> str:
    """The whole page."""
    parts = [HEAD, "## Groups\n", "| group | choices |", "|---|---|"]
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir()):
        choices = ", ".join(f"`{path.stem}`" for path in sorted(folder.glob("*.yaml")))
        if choices:
            parts.append(f"| `{folder.name}` | {choices} |")
    parts += ["", "## The run\n", *table("", Config)]
    for section, kind in get_type_hints(Config).items():
        if is_dataclass(kind):
            parts += ["", f"## `{section}`\n", first_sentence(kind), "", *table(section, kind)]
    for group in ("adapter", "strategy", "aggregation", "track"):
        parts += classes(group)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def table(section: str, kind: type) -> list[str]:
    """A row per key of a dataclass."""
    comments = beside(kind)
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    for field in fields(kind):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if is_dataclass(default) or default == "???":
            continue  # a section or a group of its own
        key = f"{section}.{field.name}" if section else field.name
        note = comments.get(field.name, "").replace("|", "or")
        rows.append(f"| `{key}` | {kind_name(field.type)} | `{shown(default)}` | {note} |")
    return rows


def shown(value: Any) -> str:
    """A value as YAML has it, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace("\n", "\\n")


def classes(group: str) -> list[str]:
    """A section for each class that a group's files name, with the settings it takes."""
    parts = []
    for path in sorted((CONF / group).glob("*.yaml")):
        loaded: Any = OmegaConf.load(path)
        node = loaded.get(group, loaded)
        if not node or "_target_" not in node:
            continue
        kind = get_class(node["_target_"])
        parts += ["", f"## `{group}={path.stem}`\n", first_sentence(kind), ""]
        known = settings(kind)
        if known:
            parts += ["| key | default there | |", "|---|---|---|"]
            for name, note in known.items():
                value = node.get(name, "")
                default = f"`{shown(value)}`" if name in node else ""
                parts.append(f"| `{group}.{name}` | {default} | {note} |")
    return parts


def settings(kind: type) -> dict[str, str]:
    """What a class takes, each with the words of its docstring (Google or NumPy style)."""
    names = [
        name
        for name, parameter in inspect.signature(kind).parameters.items()
        if name not in ("self", "adapter") and parameter.kind is not parameter.VAR_KEYWORD
    ]
    documented: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        documented |= described(inspect.getdoc(base) or "") if base is not object else {}
    return {name: documented.get(name, "") for name in names}


def described(doc: str) -> dict[str, str]:
    """Names and descriptions in a docstring's Attributes or Parameters."""
    google = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", doc, flags=re.MULTILINE)
    numpy = re.findall(r"^(\w+)(?: :.*)?\n((?: {4}.+\n?)+)", doc, flags=re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in [*numpy, *google]}


def beside(kind: type) -> dict[str, str]:
    """The comment on each field's line of a dataclass."""
    source = io.StringIO(inspect.getsource(kind))
    notes, name = {}, ""
    for token in generate_tokens(source.readline):
        if token.type == NAME and token.start[1] == 4:
            name = token.string
        elif token.type == COMMENT and name:
            notes.setdefault(name, token.string.lstrip("# "))
        elif token.type == NEWLINE:
            name = ""
    return notes


def first_sentence(kind: type) -> str:
    """What a class's docstring says first."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def kind_name(kind: Any) -> str:
    """A type as a reader of YAML names it."""
    plain = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if kind in plain:
        return plain[kind]
    inner = [kind_name(part) for part in get_args(kind) if part is not type(None)]
    if type(None) in get_args(kind):
        return " or ".join([*inner, "null"])
    return f"{'list' if 'list' in str(kind) else 'map'} of {inner[-1]}" if inner else "any"


if __name__ == "__main__":
    (DOCS / "configuration.md").write_text(text(), encoding="utf-8")
