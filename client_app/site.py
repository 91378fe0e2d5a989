"""What belongs to a site and to nobody else: its data, device, copy of the model, and disk.

Set by `flower-supernode --node-config 'data="/srv/notes.jsonl" device="cuda"'`. A site chooses
where and how it computes, never the method.
"""

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context

if TYPE_CHECKING:  # it brings torch along, which a site with a worker does not need here
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
    epsilon: float = 0.0  # the most ε that its rows may ever cost; 0: the run decides
    secagg_only: int = 0  # 1: refuse runs without secure aggregation
    secagg_key: str = ""  # this node's EC private key file, to sign the keys of a round with
    secagg_peers: str = ""  # file of the public keys that may take part, one OpenSSH key a line
    secagg_repeat: int = 0  # 1: take part again in a round that was already unmasked
    state: str = ""  # folder for what must outlive a process
    worker: float = 0.0  # seconds that a process with the loaded model waits for a message; 0: none
    partition_id: int = -1  # which part of the run's data, when it has none of its own

    def apply(self, config: "Config") -> "Config":
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

    def check_privacy(self, config: "Config") -> None:
        """Raise SiteError when the site limits what its rows cost and the run does not count it."""
        if self.epsilon and not config.privacy.active:
            raise SiteError(
                f"this site's rows may cost ε {self.epsilon} at most, and the run counts nothing: "
                "run it with privacy=example"
            )

    @property
    def folder(self) -> Path:
        """Where the site keeps its state."""
        home = os.environ.get("FEDTUNERS_STATE", "~/.local/state/fedtuners")
        return Path(self.state or home).expanduser()


def read_site(context: Context) -> Site:
    """The site that Flower's node config describes; SiteError names an unknown key."""
    known = {field.name: field for field in fields(Site)}
    values: dict[str, str | int | float] = {}
    for key, value in context.node_config.items():
        name = key.replace("-", "_")
        if name == "num_partitions":
            continue
        if name not in known:
            raise SiteError(f"node-config has no key '{key}'; it has {', '.join(sorted(known))}")
        kind: type = known[name].type  # type: ignore[assignment]
        try:
            values[name] = kind(value)
        except ValueError:
            raise SiteError(f"node-config {key}={value} must be a number") from None
    return Site(**values)  # type: ignore[arg-type]
