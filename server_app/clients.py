"""Who takes part: wait for nodes, ask each what it holds, and number the clients."""

import time
from logging import INFO, WARNING

from flwr.common import log
from flwr.serverapp import Grid

from fedtuners.config import Config
from strategies.exchange import Exchange, TooFewRepliesError
from strategies.messages import HELLO, OK, Reply, read_reply

POLL = 0.5  # seconds between looks at the list of nodes


def meet(grid: Grid, run: str, config: Config, text: str) -> Exchange:
    """Wait for the nodes, greet them, and return the exchange with the numbered clients.

    Nodes with data of their own are a client each, in the order of their names. Otherwise the
    run's data is dealt to `federation.clients` clients, which the nodes answer for in turn.

    Raises
    ------
    TooFewRepliesError
        If too few nodes come in time, or a node says it cannot take part.
    """
    nodes = wait_for_nodes(grid, config)
    exchange = Exchange.create(grid, run, dict(enumerate(nodes)), text)
    messages = [exchange.message(HELLO, client, 0) for client in exchange.nodes]
    answers, problems = exchange.ask(messages, 0, config.federation.wait)
    if problems:
        reasons = "; ".join(f"node {nodes[client]}: {why}" for client, why in problems.items())
        if len(answers) < config.federation.minimum_nodes:
            raise TooFewRepliesError(f"no federation to run: {reasons}")
        log(WARNING, "going on without %s", reasons)
    replies = {nodes[r.client]: r for r in (read_reply(a.content) for a in answers)}
    exchange.renumber(_numbered(replies, config))
    for client, node in exchange.nodes.items():
        log(INFO, "client %s: node %s %s", client, node, replies[node].extra.get("name", ""))
    return exchange


def wait_for_nodes(grid: Grid, config: Config) -> list[int]:
    """The ids of the connected nodes, at least `federation.minimum_nodes` of them."""
    wanted, until = config.federation.minimum_nodes, time.monotonic() + config.federation.wait
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        if time.monotonic() > until:
            raise TooFewRepliesError(
                f"{len(nodes)} of {wanted} nodes came within {config.federation.wait:.0f} s: start "
                "more SuperNodes, or lower federation.minimum_nodes or raise federation.wait"
            )
        time.sleep(POLL)
    return nodes


def _numbered(replies: dict[int, Reply], config: Config) -> dict[int, int]:
    """client → node."""
    assert all(reply.status == OK for reply in replies.values())
    sites = [node for node, reply in replies.items() if reply.extra["own_data"]]
    if sites:
        sites.sort(key=lambda node: (str(replies[node].extra["name"]), node))
        return dict(enumerate(sites))
    order = sorted(replies, key=lambda node: (int(replies[node].extra["partition"]), node))
    return {client: order[client % len(order)] for client in range(config.federation.clients)}
