"""Who takes part: wait for nodes, ask each what it holds, and number the clients."""

import time
from collections.abc import Sequence
from logging import INFO, WARNING

from flwr.common import log
from flwr.serverapp import Grid

from fedtuners.config import Config, ConfigError
from strategies.exchange import Exchange, TooFewRepliesError
from strategies.messages import HELLO, Reply, read_reply

POLL = 0.5  # seconds between looks at the list of nodes


def meet(
    grid: Grid, run: str, config: Config, text: str, sites: Sequence[str] | None = None
) -> Exchange:
    """Wait for the nodes, greet them, and return the exchange with the numbered clients.

    Nodes with data of their own are a client each, in the order of their names. Otherwise the
    run's data is dealt to `federation.clients` clients, which the nodes answer for in turn.
    `sites` are those of a run that goes on: each keeps its number, whoever is absent. A node may
    still be at work on what that run asked last, and answers a greeting after it.

    Raises
    ------
    TooFewRepliesError
        If too few nodes come in time, or a node says it cannot take part.
    """
    wait = config.federation.wait
    if sites is not None:
        wait = max(wait, config.federation.deadline)
        log(INFO, "greeting the nodes: one that is still at work on its last round answers later")
    sites = sites or ()
    nodes = wait_for_nodes(grid, config, len(sites))
    exchange = Exchange.create(grid, run, dict(enumerate(nodes)), text)
    messages = [exchange.message(HELLO, client, 0) for client in exchange.nodes]
    answers, problems = exchange.ask(messages, 0, wait)
    if problems:
        reasons = "; ".join(f"node {nodes[client]}: {why}" for client, why in problems.items())
        if len(answers) < config.federation.minimum_nodes:
            raise TooFewRepliesError(f"no federation to run: {reasons}")
        log(WARNING, "going on without %s", reasons)
    replies = {nodes[r.client]: r for r in (read_reply(a.content) for a in answers)}
    own = {node: _name(node, reply) for node, reply in replies.items() if reply.extra["own_data"]}
    exchange.sites = [*sites, *sorted(set(own.values()) - set(sites))]
    exchange.renumber(_by_site(own, exchange.sites) if own else _by_partition(replies, config))
    for client, node in exchange.nodes.items():
        extra = replies[node].extra
        log(INFO, "client %s: node %s %s", client, node, extra.get("name", ""))
        if "privacy" in extra:
            log(INFO, "%s", extra["privacy"])
    return exchange


def wait_for_nodes(grid: Grid, config: Config, hoped: int = 0) -> list[int]:
    """The ids of the connected nodes: `hoped` of them, or in the end `federation.minimum_nodes`."""
    wanted, until = config.federation.minimum_nodes, time.monotonic() + config.federation.wait
    while len(nodes := sorted(grid.get_node_ids())) < max(wanted, hoped):
        if time.monotonic() > until:
            if len(nodes) >= wanted:
                break
            raise TooFewRepliesError(
                f"{len(nodes)} of {wanted} nodes came within {config.federation.wait:.0f} s: start "
                "more SuperNodes, or lower federation.minimum_nodes or raise federation.wait"
            )
        time.sleep(POLL)
    return nodes


def _name(node: int, reply: Reply) -> str:
    return str(reply.extra["name"]) or f"node {node}"


def _by_site(own: dict[int, str], sites: Sequence[str]) -> dict[int, int]:
    """client → node, a client being a site."""
    nodes = {name: node for node, name in own.items()}
    if len(nodes) < len(own):
        raise ConfigError(
            f"two nodes have one name among {', '.join(sorted(own.values()))}: give each its own "
            "by --node-config 'name=\"…\"'"
        )
    return {client: nodes[name] for client, name in enumerate(sites) if name in nodes}


def _by_partition(replies: dict[int, Reply], config: Config) -> dict[int, int]:
    """client → node, a client being a part of the run's data."""
    order = sorted(replies, key=lambda node: (int(replies[node].extra["partition"]), node))
    return {client: order[client % len(order)] for client in range(config.federation.clients)}
