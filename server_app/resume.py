"""The configuration of a run that goes on: its own, but for where and how long it runs."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from fedtuners.config import Config, ConfigError, from_json, to_json
from server_app.checkpoint import load
from server_app.folder import RunFolder

# What may differ when a run goes on: where and how long it runs, not what it computes.
FREE = {
    *("resume", "outputs", "device", "train.micro_batch", "evaluation.batch_size"),
    *("federation.rounds", "federation.patience", "federation.deadline", "federation.wait"),
    *("federation.minimum_nodes", "federation.minimum_replies", "federation.at_once"),
}
Leaves = dict[str, Any]  # dotted key → value


def resumed(config: Config, overrides: Sequence[str]) -> Config:
    """The interrupted run's configuration, with those of `overrides` that are free to change.

    `config` is what the overrides compose to, which for everything else is the default.

    Raises
    ------
    ConfigError
        If there is nothing to resume, or an override would change the method.
    """
    plain = json.loads(load(RunFolder.resume(config).checkpoint).config)
    asked, kept = dict(_leaves(json.loads(to_json(config)))), dict(_leaves(plain))
    for word in overrides:
        group = word.partition("=")[0].lstrip("+~")
        for key in (key for key in asked if f"{key}.".startswith(f"{group}.")):
            if key in FREE:
                *path, last = key.split(".")
                section = plain
                for name in path:
                    section = section[name]
                section[last] = asked[key]
            elif asked[key] != kept.get(key) and asked[key] != []:  # [] is filled in by the rows
                raise ConfigError(
                    f"{word}: the run to resume has {key}={kept.get(key)} and goes on with it; "
                    "leave the override out, or start a new run"
                )
    return from_json(json.dumps(plain))


def _leaves(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
