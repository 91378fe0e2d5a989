"""Deal the training rows to the clients, by the partitioners of flwr-datasets.

Every row goes to exactly one client, every client gets at least one row, and the same seed gives
the same parts on every machine.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from datasets import ClassLabel, Dataset, Value

from fedtuners.tasks.config import SPLIT_BY_COLUMN, PartitionConfig

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

_dealt: WeakKeyDictionary[Dataset, dict[str, list[Dataset]]] = WeakKeyDictionary()


class PartitionError(ValueError):
    """Rows that cannot be dealt as asked; its one sentence names the fix."""


def partition(train: Dataset, config: PartitionConfig, clients: int, client: int) -> Dataset:
    """The rows of one client (0 ≤ `client` < `clients`). Raises PartitionError.

    One split of the same `train` object serves all of a process's clients and rounds.
    """
    if not 0 <= client < clients:
        raise PartitionError(f"there is no client {client} among {clients}: they count from 0")
    dealt = _dealt.setdefault(train, {})
    key = f"{config} over {clients}"
    if key not in dealt:
        dealt[key] = partitions(train, config, clients)
    return dealt[key][client]


def partitions(train: Dataset, config: PartitionConfig, clients: int) -> list[Dataset]:
    """The rows of every client.

    iid: equal random parts. dirichlet: each value of `column` is divided by Dirichlet(α) shares
    (Hsu et al., 1909.06335). natural: whole groups of `column`, spread so that sizes are as even as
    the groups allow. size: random parts of `sizes`, or of shares ∝ (i + 1)^skew. pathological:
    each client sees only `classes` values of `column` (McMahan et al., 1602.05629).

    Raises
    ------
    PartitionError
        When there are too few rows, groups or values for the clients, or the column that decides
        is missing, empty in some rows, or holds lists or objects.
    """
    if clients > len(train):
        raise PartitionError(
            f"{clients} clients cannot share {len(train)} rows; lower federation.clients"
        )
    if config.column is not None and config.column not in train.column_names:
        raise PartitionError(
            f"partition.column={config.column} is no column; there are "
            f"{', '.join(train.column_names)}"
        )
    if config.kind in SPLIT_BY_COLUMN:
        _check_values(train, str(config.column))
    shuffled = train.shuffle(seed=config.seed)
    if config.kind == "natural":
        return _natural(shuffled, config, clients)
    parts = _deal(shuffled, _partitioner(shuffled, config, clients), clients, config)
    if sum(map(len, parts)) != len(train):
        raise PartitionError(
            f"{clients} clients with {config.classes} values of {config.column} each leave rows "
            "to nobody; raise partition.classes or federation.clients"
        )
    return parts


def _check_values(rows: Dataset, column: str) -> None:
    """Raise PartitionError unless every row has one plain value in the column."""
    if not isinstance(rows.features[column], Value | ClassLabel):
        raise PartitionError(
            f"column {column} holds lists or objects: write them as text, or use partition=iid"
        )
    if rows.with_format("arrow")[column].null_count:
        raise PartitionError(
            f"column {column} is empty in some rows: fill it, drop them, or use partition=iid"
        )


def describe(parts: Sequence[Dataset], column: str | None = None) -> dict[str, list[int]]:
    """Rows per client, in all ("rows") and by value of `column`, the commonest value first."""
    table = {"rows": [len(part) for part in parts]}
    if column is None:
        return table
    counts = [Counter(map(str, part[column])) for part in parts]
    for value, _ in sum(counts, Counter()).most_common():
        table[value] = [count[value] for count in counts]
    return table


def _partitioner(rows: Dataset, config: PartitionConfig, clients: int) -> "Partitioner":
    from flwr_datasets import partitioner  # slow to import, and a site with own rows needs none

    if config.kind == "iid":
        return partitioner.IidPartitioner(clients)
    if config.kind == "size":
        return partitioner.SizePartitioner(_sizes(len(rows), config, clients))
    if config.kind == "dirichlet":
        return partitioner.DirichletPartitioner(
            clients,
            str(config.column),
            float(config.alpha),
            min_partition_size=config.minimum_rows,
            seed=config.seed,
        )
    # Both modes use every value when there is room; the first also draws which go together.
    values = len(rows.unique(config.column))
    mode = "first-deterministic" if clients >= values else "deterministic"
    return partitioner.PathologicalPartitioner(
        clients, str(config.column), config.classes, class_assignment_mode=mode, seed=config.seed
    )


def _deal(
    rows: Dataset, partitioner: "Partitioner", clients: int, config: PartitionConfig
) -> list[Dataset]:
    partitioner.dataset = rows
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is checked here, as errors
            return [partitioner.load_partition(client) for client in range(clients)]
    except ValueError as error:
        raise PartitionError(
            f"partition.kind={config.kind} found no split of {len(rows)} rows over {clients} "
            f"clients: raise partition.alpha or the rows, or lower federation.clients, "
            f"partition.classes or partition.minimum_rows"
        ) from error


def _sizes(rows: int, config: PartitionConfig, clients: int) -> list[int]:
    """Whole sizes by largest remainder, at least one row each, that sum to `rows`."""
    if config.sizes and len(config.sizes) != clients:
        raise PartitionError(
            f"partition.sizes has {len(config.sizes)} entries for {clients} clients"
        )
    shares = np.array(config.sizes or [(i + 1) ** config.skew for i in range(clients)], dtype=float)
    exact = (rows - clients) * shares / shares.sum()
    sizes = exact.astype(int)
    largest = np.argsort(sizes - exact, kind="stable")[: rows - clients - sizes.sum()]
    sizes[largest] += 1
    return [int(size) + 1 for size in sizes]


def _natural(rows: Dataset, config: PartitionConfig, clients: int) -> list[Dataset]:
    """Whole groups to clients: the largest group first, always to the client with fewest rows."""
    groups: dict[str, list[int]] = {}
    for index, value in enumerate(rows[config.column][:]):  # a list; row by row is slow
        groups.setdefault(str(value), []).append(index)
    if len(groups) < clients:
        raise PartitionError(
            f"column {config.column} has {len(groups)} groups for {clients} clients; lower "
            "federation.clients or split by another column"
        )
    owned: list[list[int]] = [[] for _ in range(clients)]
    for name in sorted(groups, key=lambda name: (-len(groups[name]), name)):
        min(owned, key=len).extend(groups[name])
    return [rows.select(sorted(indices)) for indices in owned]
