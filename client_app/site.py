"""What belongs to a site and to nobody else: its data, device, copy of the model, and disk.

Set by `flower-supernode --node-config 'data="/srv/notes.jsonl" device="cuda"'`. A site chooses
where and how it computes, never the method.
"""

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

from flwr.app import Context

from fedtuners.config import Config


class SiteError(ValueError):
    """Something a site must mend; its sentence holds nothing of the site's data."""


@dataclass(frozen=True)
class Site:
    """The settings of one node."""

    name: str = ""
    data: str = ""  # its own rows; empty: a part of the run's data
    model: str = ""  # its own copy of the base model, a folder
    device: str = ""  # cpu | cuda | cuda:1
    dtype: str = ""  # of the base model
    micro_batch: int = 0  # examples per forward pass, for its memory
    state: str = ""  # folder for what must outlive a process
    partition_id: int = -1  # which part of the run's data, when it has none of its own

    def apply(self, config: Config) -> Config:
        """The run's configuration as this site executes it."""
        data = replace(config.data, source=self.data) if self.data else config.data
        model = replace(
            config.model,
            name=self.model or config.model.name,
            dtype=self.dtype or config.model.dtype,
        )
        train = replace(config.train, micro_batch=self.micro_batch or config.train.micro_batch)
        device = self.device or config.device
        return replace(config, data=data, model=model, train=train, device=device)

    @property
    def folder(self) -> Path:
        """Where the site keeps its state."""
        home = os.environ.get("FEDTUNERS_STATE", "~/.local/state/fedtuners")
        return Path(self.state or home).expanduser()


def read_site(context: Context) -> Site:
    """The site that Flower's node config describes; SiteError names an unknown key."""
    known = {field.name: field for field in fields(Site)}
    values: dict[str, str | int] = {}
    for key, value in context.node_config.items():
        name = key.replace("-", "_")
        if name == "num_partitions":
            continue
        if name not in known:
            raise SiteError(f"node-config has no key '{key}'; it has {', '.join(sorted(known))}")
        values[name] = int(value) if known[name].type is int else str(value)
    return Site(**values)  # type: ignore[arg-type]
