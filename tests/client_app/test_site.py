"""A site's own settings: what they change in the run's configuration, and what they cannot."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from client_app.site import Site, SiteError, read_site
from fedtuners.config import to_json


def context(**settings: Any) -> Context:
    node = {key.replace("_", "-"): value for key, value in settings.items()}
    return Context(1, 1, node, RecordDict(), {})


def test_settings_are_read_by_either_spelling() -> None:
    site = read_site(context(name="ward", data="rows.csv", micro_batch=4, partition_id=2))

    assert site == Site(name="ward", data="rows.csv", micro_batch=4, partition_id=2)
    assert read_site(Context(1, 1, {"micro_batch": 4}, RecordDict(), {})).micro_batch == 4


def test_an_empty_node_config_is_a_part_of_the_runs_data() -> None:
    assert read_site(context()) == Site()
    assert read_site(context(num_partitions=3)) == Site()


def test_an_unknown_key_names_those_there_are() -> None:
    with pytest.raises(SiteError, match=r"no key 'dta'; it has .*data, .*device"):
        read_site(context(dta="rows.csv"))


def test_a_number_must_be_one() -> None:
    with pytest.raises(SiteError, match="micro-batch=many must be a number"):
        read_site(context(micro_batch="many"))


def test_a_site_chooses_where_and_how_but_not_what(settings: Any) -> None:
    config = settings("model.quantization=nf4")
    site = Site(data="own.csv", model="/models/x", device="cpu", dtype="bfloat16", micro_batch=3)

    applied = site.apply(config)

    assert applied.data.source == "own.csv"
    assert (applied.model.name, applied.model.dtype) == ("/models/x", "bfloat16")
    assert applied.model.quantization == "nf4"
    assert applied.train.micro_batch == 3
    for section in ("adapter", "strategy", "federation", "start", "seed"):
        assert getattr(applied, section) == getattr(config, section)
    assert applied.train.steps == config.train.steps


def test_a_site_without_settings_changes_nothing(settings: Any) -> None:
    config = settings("train.micro_batch=2")

    assert to_json(Site().apply(config)) == to_json(config)


def test_the_state_folder_is_the_sites_else_the_environments(tmp_path: Path) -> None:
    assert Site().folder == tmp_path / "state"
    assert Site(state="/srv/state").folder == Path("/srv/state")
