"""What the server says of the clients' privacy: before a run by forecast, after it by report.

It repeats what the clients say of themselves and vouches for none of it: noise, sampling and ledger
are the clients' own.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from fedtuners.config import Config
from fedtuners.privacy import forecast, units_of
from fedtuners.tasks import Splits, partition


def simulated_forecast(config: Config, rows: Splits) -> str:
    """The cost of a run whose clients are parts of `rows`; refuses as their plans do."""
    clients = config.federation.clients
    parts = [partition(rows.train, config.partition, clients, i) for i in range(clients)]
    return forecast(config, [len(units_of(part, config.privacy.unit)) for part in parts])


def privacy_summary(config: Config, lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The section `privacy` of summary.json, from the clients' lines of metrics.jsonl.

    ε is the largest that any client reports, over everything that its ledger holds.
    """
    privacy = config.privacy
    if not privacy.active:
        return {"protects": privacy.protects}
    reports = [line for line in lines if "epsilon" in line]
    by_client: dict[int, float] = {}
    for line in reports:
        client = int(line["client"])
        by_client[client] = max(by_client.get(client, 0.0), float(line["epsilon"]))
    return {
        "protects": privacy.protects,
        "unit": f"rows with one value of {privacy.unit}" if privacy.unit else "one example",
        "neighbours": "one unit of one client present or absent",
        "epsilon": max(by_client.values()),
        "epsilon_by_client": {str(client): by_client[client] for client in sorted(by_client)},
        "budget": privacy.epsilon,
        "delta": max(_span(reports, "delta"), default=privacy.delta),
        "accountant": privacy.accountant,
        "sampling": "Poisson, by each client, with secret random numbers",
        "sample_rate": _span(reports, "sample_rate"),
        "noise_multiplier": _span(reports, "noise_multiplier"),
        "clip": privacy.clip,
    }


def _span(reports: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    """The smallest and the largest value; none under secure aggregation, which hides them."""
    values = [float(line[name]) for line in reports if name in line]
    return [min(values), max(values)] if values else []
