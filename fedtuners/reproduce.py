"""The shortest command that composes a given configuration again."""

import shlex
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedtuners.config import Config, compose

Flat = dict[str, Any]
GLOBAL = "@package _global_"  # the mark of an option that also sets keys of other sections


def command(config: Config, conf: Path) -> str:
    """`fedtuners run …` with the choices and values in which a configuration is not the default."""
    return shlex.join(["fedtuners", "run", *overrides(config, conf)])


def overrides(config: Config, conf: Path) -> list[str]:
    """Hydra overrides that compose `config` from `conf`, groups first.

    Where the run was taken up again, and where it wrote to, are left out.
    """
    wanted = flat(replace(config, resume=None, outputs=None))
    default = flat(compose([], conf))
    usual = {
        f"{group}={option}"
        for entry in OmegaConf.load(conf / "config.yaml").defaults
        if not isinstance(entry, str)
        for group, option in entry.items()
    }
    choices: list[str] = []
    for group in sorted(path.name for path in conf.iterdir() if path.is_dir()):
        own = _section(group, wanted)
        if own != _section(group, default) and any((conf / group).glob("*.yaml")):
            nearest = f"{group}={_nearest(group, wanted, conf)}"
            choices += [] if nearest in usual else [nearest]
    needed = [
        f"{key}={_word(wanted[key])}"
        for choice, key in (("model=hf", "model.name"), ("data=custom", "data.source"))
        if choice in choices
    ]
    chosen = flat(compose([*choices, *needed], conf))
    unset = [
        f"~{key}"
        for key, value in chosen.items()
        if key not in wanted and value != {}  # an empty map is there still, with keys in it
    ]
    values = [
        f"{key if key in chosen else f'+{key}'}={_word(value)}"
        for key, value in wanted.items()
        if key not in chosen or chosen[key] != value
    ]
    return choices + needed + unset + values


def _nearest(group: str, wanted: Flat, conf: Path) -> str:
    """The option of a group that leaves the fewest values to set."""
    own = _section(group, wanted)
    fixed = getattr(Config(), group, None)  # of a group whose keys the schema gives
    default = _section(group, flat(Config())) if is_dataclass(fixed) else {}
    wrong = {}
    for path in sorted((conf / group).glob("*.yaml")):
        loaded = OmegaConf.load(path)
        written = loaded if GLOBAL in path.read_text(encoding="utf-8") else {group: loaded}
        rest = {"data": {"group": wanted["partition.column"]}}  # what a partition refers to
        plain = OmegaConf.to_container(OmegaConf.merge(rest, written), resolve=True)
        found = default | _section(group, _dotted("", plain))  # type: ignore[arg-type]
        wrong[path.stem] = sum(
            found.get(key) not in (own.get(key), "???") for key in found.keys() | own.keys()
        )
    return min(wrong, key=lambda option: wrong[option])


def _section(group: str, flat: Flat) -> Flat:
    return {key: value for key, value in flat.items() if key.split(".")[0] == group}


def flat(config: Config) -> Flat:
    """The values of a configuration by dotted key."""
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(plain, dict)
    return _dotted("", plain)


def _dotted(prefix: str, node: dict[Any, Any]) -> Flat:
    flat: Flat = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            flat |= _dotted(f"{prefix}{key}.", value)
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _word(value: Any) -> str:
    """A value as Hydra's override grammar reads it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_word(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_word(item)}' for key, item in value.items())}}}"
    if isinstance(value, str):
        return (
            "'" + value.replace("\\'", "\\\\'").replace("'", "\\'") + "'" if _odd(value) else value
        )
    return str(value)


def _odd(text: str) -> bool:
    """Whether Hydra would read a bare text as something else than itself."""
    plain = bool(text) and all(letter.isalnum() or letter in "_-./" for letter in text)
    return not plain or text.lower() in ("null", "true", "false", "nan", "inf") or text[0].isdigit()
