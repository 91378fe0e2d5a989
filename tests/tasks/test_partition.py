"""Every row goes to one client, by the seed alone, skewed as asked."""

from collections import Counter
from typing import Any

import pytest
from datasets import Dataset

from fedtuners.tasks import PartitionConfig, PartitionError, describe, partition, partitions

ROWS = 240
COLOURS = ("red", "green", "blue", "grey", "pink", "teal")


def rows() -> Dataset:
    colours = [COLOURS[i * i % 7 % 6] for i in range(ROWS)]
    return Dataset.from_dict({"id": list(range(ROWS)), "colour": colours})


CONFIGS = [
    PartitionConfig("iid"),
    PartitionConfig("dirichlet", "colour", alpha=0.3),
    PartitionConfig("natural", "colour"),
    PartitionConfig("size", skew=2.0),
    PartitionConfig("size", sizes=[5, 1, 1, 3]),
    PartitionConfig("pathological", "colour", classes=2),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_every_row_goes_to_exactly_one_client(config: PartitionConfig) -> None:
    train = rows()

    parts = partitions(train, config, 4)

    assert sorted(i for part in parts for i in part["id"]) == list(range(ROWS))
    assert all(len(part) for part in parts)
    assert partition(train, config, 4, 2)["id"] == parts[2]["id"]
    assert partition(train, config, 4, 2) is partition(train, config, 4, 2)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_the_seed_decides(config: PartitionConfig) -> None:
    def ids(seed: int) -> list[list[int]]:
        again = PartitionConfig(**{**vars(config), "seed": seed})
        return [list(part["id"]) for part in partitions(rows(), again, 4)]

    assert ids(1) == ids(1)
    if config.kind != "natural":
        assert [set(part) for part in ids(1)] != [set(part) for part in ids(2)]


def test_iid_parts_are_equal() -> None:
    assert describe(partitions(rows(), PartitionConfig("iid"), 7))["rows"] == [35] * 2 + [34] * 5


def test_a_small_alpha_is_more_skewed_than_a_large_one() -> None:
    def largest_share(alpha: float) -> float:
        table = describe(
            partitions(rows(), PartitionConfig("dirichlet", "colour", alpha), 4), "colour"
        )
        return sum(max(counts) for name, counts in table.items() if name != "rows") / ROWS

    assert largest_share(0.1) > 0.7 > 0.4 > largest_share(1000.0)


def test_size_shares_follow_the_skew() -> None:
    parts = partitions(rows(), PartitionConfig("size", skew=1.0), 4)

    assert describe(parts) == {"rows": [25, 48, 72, 95]}


def test_natural_keeps_groups_whole_and_sizes_even() -> None:
    parts = partitions(rows(), PartitionConfig("natural", "colour"), 3)

    table = describe(parts, "colour")
    values = Counter(map(str, rows()["colour"]))
    assert {name: sum(map(bool, counts)) for name, counts in table.items()} == {
        "rows": 3,
        **dict.fromkeys(values, 1),
    }
    assert max(table["rows"]) <= max(max(values.values()), ROWS // 2)


def test_pathological_clients_see_few_values() -> None:
    for clients in (4, 9):
        table = describe(
            partitions(rows(), PartitionConfig("pathological", "colour", classes=2), clients),
            "colour",
        )
        seen = [
            sum(table[name][client] > 0 for name in table if name != "rows")
            for client in range(clients)
        ]
        assert seen == [2] * clients


def test_describe_counts_every_value() -> None:
    parts = partitions(rows(), PartitionConfig("iid"), 3)

    table = describe(parts, "colour")

    assert [sum(counts) for name, counts in table.items() if name != "rows"] == sorted(
        Counter(rows()["colour"]).values(), reverse=True
    )


@pytest.mark.parametrize(
    ("config", "clients", "sentence"),
    [
        (PartitionConfig("iid"), ROWS + 1, "241 clients cannot share 240 rows"),
        (PartitionConfig("natural", "shape"), 2, "shape is no column; there are id, colour"),
        (PartitionConfig("natural", "colour"), 9, "colour has . groups for 9 clients"),
        (PartitionConfig("size", sizes=[1, 2]), 3, "2 entries for 3 clients"),
        (PartitionConfig("dirichlet", "colour", minimum_rows=100), 4, "found no split of 240 rows"),
        (PartitionConfig("pathological", "colour", classes=1), 2, "leave rows to nobody"),
    ],
)
def test_what_cannot_be_dealt_is_told(config: PartitionConfig, clients: int, sentence: str) -> None:
    with pytest.raises(PartitionError, match=sentence):
        partitions(rows(), config, clients)


@pytest.mark.parametrize("kind", ["dirichlet", "natural", "pathological"])
@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (["a", None, "b"], "column user is empty in some rows: fill it, drop them, or use"),
        ([["a"], ["b"], ["a"]], "column user holds lists or objects: write them as text"),
    ],
    ids=["empty", "lists"],
)
def test_a_column_that_cannot_decide_is_told(kind: str, values: list[Any], sentence: str) -> None:
    train = Dataset.from_dict({"user": values * 20})

    with pytest.raises(PartitionError, match=sentence):
        partitions(train, PartitionConfig(kind, "user", classes=1), 2)
    assert len(partitions(train, PartitionConfig("iid", "user"), 2)) == 2


def test_a_client_outside_the_federation_is_refused() -> None:
    for client in (-1, 4):
        with pytest.raises(PartitionError, match=f"no client {client} among 4"):
            partition(rows(), PartitionConfig("iid"), 4, client)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "idd"}, "partition.kind=idd is not known; choose from iid, dirichlet"),
        ({"kind": "natural"}, "needs a column to split by: set data.group"),
        ({"alpha": 0.0}, "must be above 0"),
        ({"sizes": [1.0, 0.0]}, "must all be above 0"),
    ],
)
def test_configurations_that_cannot_be_are_refused(
    fields: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        PartitionConfig(**fields)  # type: ignore[arg-type]
