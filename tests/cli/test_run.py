"""What `fedtuners run` hands to Flower is what the server reads."""

import shlex

import pytest
from flwr.common.config import parse_config_args

from fedtuners.cli.run import run_config


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["strategy=fed_sb", "federation.rounds=3"],
        ['data.prompt="Q: {question}\nA: "', 'data.response="{answer}"'],
        ['data.prompt=""', "adapter.targets=[query,value]"],
        [r'data.prompt="{question}\nAnswer:\t"'],
        ["outputs=/srv/it's here/größer", "data.metric='exact match'"],
        ["a=\\", 'b=\\"', "c=\\u0022"],
    ],
)
def test_overrides_arrive_as_they_were_written(overrides: list[str]) -> None:
    arrived = parse_config_args([run_config(overrides)])
    assert list(arrived) == ["overrides"]
    assert shlex.split(arrived["overrides"]) == overrides
