"""The configuration: every file composes, travels as JSON, and a mistake names the choices."""

import copy
import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fedtuners.adapters import Abba, Lora, LoraSb
from fedtuners.config import (
    Config,
    ConfigError,
    class_named,
    compose,
    from_json,
    make_adapter,
    to_json,
)

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
FILES = [
    f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))
]
NEEDS = {
    "strategy=ffa_lora": ["adapter=lora"],
    "strategy=fedex_lora": ["adapter=lora"],
    "model=hf": ["model.name=org/name"],
    "data=custom": ["data.source=rows.jsonl", "partition=iid"],
}


@cache
def _default() -> Config:
    return compose([], CONF)


def default() -> Config:
    """The default configuration, to be changed."""
    return copy.deepcopy(_default())


def composed(word: str) -> Config:
    """One choice of one group, with what it cannot do without."""
    data = word.startswith("data=")
    return compose([*(["partition=iid"] if data else []), word, *NEEDS.get(word, [])], CONF)


@pytest.mark.parametrize("word", FILES)
def test_every_file_composes_and_travels(word: str) -> None:
    config = composed(word)

    assert isinstance(config, Config)
    assert to_json(from_json(to_json(config))) == to_json(config)
    assert make_adapter(config).name in ("lora", "lora_sb", "abba")


def test_the_default_is_the_main_job() -> None:
    config = default()

    assert (config.model.name, config.data.source) == ("demo", "demo")
    assert config.strategy["_target_"] == "strategies.fed_sb.FedSB"
    assert isinstance(make_adapter(config), LoraSb)


def test_json_keeps_every_value() -> None:
    words = [
        "adapter=abba",
        "strategy=fedex_lora",
        "seed=7",
        "train.micro_batch=4",
        "data.text=[a,b]",
    ]
    config = compose([*words, "adapter.targets=[q_proj,v_proj]", "federation.patience=3"], CONF)

    back = from_json(to_json(config))

    assert back == config
    assert (back.seed, back.train.micro_batch, back.data.text) == (7, 4, ["a", "b"])
    assert make_adapter(back) == make_adapter(config)
    assert make_adapter(back).targets == ["q_proj", "v_proj"]


def test_json_is_the_same_for_the_same_configuration() -> None:
    first = compose(["seed=1", "federation.rounds=3"], CONF)
    second = compose(["federation.rounds=3", "seed=1"], CONF)

    assert to_json(first) == to_json(second)
    assert to_json(first) != to_json(compose(["seed=2", "federation.rounds=3"], CONF))
    assert json.loads(to_json(first))["seed"] == 1


# --- mistakes ----------------------------------------------------------------------------------

MISTAKES = {
    "strategy=fedavg": ["strategy has no choice 'fedavg'", "fed_sb, fedavg_lora, fedex_lora"],
    "adapter=lroa": ["adapter has no choice 'lroa'", "abba, lora, lora_sb"],
    "model=dmo": ["model has no choice 'dmo'", "demo"],
    "data=snil": ["data has no choice 'snil'", "snli"],
    "partition=random": ["partition has no choice 'random'", "dirichlet, iid"],
    "federation.ronds=3": ["unknown key 'federation.ronds'", "federation has", "rounds"],
    "train.lr=1": ["unknown key 'train.lr'", "learning_rate"],
    "sed=1": ["unknown key 'sed'", "seed"],
    "adapter.rnak=4": ["unknown key 'adapter.rnak'", "rank"],
    "federation.rounds=three": ["federation.rounds", "three"],
    "federation.rounds=0": ["federation.rounds=0 must be above 0"],
    "federation.fraction=1.5": ["federation.fraction=1.5 must lie in (0, 1]"],
    "federation.fraction=0": ["federation.fraction=0.0 must lie in (0, 1]"],
    "federation.minimum_replies=0": ["federation.minimum_replies=0 must be above 0"],
    "train.schedule=linaer": ["train.schedule=linaer is not one of constant, linear, cosine"],
    "train.steps=-1": ["train.steps=-1 must be above 0"],
    "train.micro_batch=0": ["train.micro_batch=0 must be above 0"],
    "train.epochs=0": ["train.epochs=0 must be above 0"],
    "train.learning_rate=nan": ["train.learning_rate=nan must be above 0"],
    "train.warmup=-0.1": ["train.warmup=-0.1 must be at least 0"],
    "evaluation.batch_size=0": ["evaluation.batch_size=0 must be above 0"],
    "evaluation.every=0": ["evaluation.every=0 must be above 0"],
    "start.batch_size=0": ["start.batch_size=0 must be above 0"],
    "start.oversampling=-1": ["start.oversampling=-1 must be at least 0"],
    "federation.minimum_nodes=0": ["federation.minimum_nodes=0 must be above 0"],
    "partition.classes=0": ["partition.classes=0 must be above 0"],
    "federation.patience=0": ["federation.patience=0 must be above 0"],
    "seed=-1": ["seed=-1 must be at least 0"],
    "model=hf": ["model.name is empty: give a hub name or a folder"],
    "data=custom": ["data.source is empty: give a file or a hub name"],
    "train.learning_rate=fast": ["train.learning_rate", "fast"],
    "start.source=cloud": ["start.source=cloud is not one of clients, server, public"],
    "federation.wire_dtype=int8": ["federation.wire_dtype=int8 is not one of None, bfloat16"],
    "model.quantization=int3": ["model.quantization=int3 is not", "from null, int8, nf4"],
    "train.optimizer=sgd": ["train.optimizer=sgd is not one of adamw, adamw_8bit, paged_adamw"],
    "model.dtype=fp8": ["model.dtype=fp8 is not known; choose from float32, bfloat16, float16"],
    "data.task=regression": ["data.task=regression is not known", "causal_lm, classification"],
    "data.metric=f1": ["data.metric", "exact_match"],
    "partition.alpha=0": ["partition.alpha=0.0 must be above 0"],
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_is_one_sentence_with_the_choices(word: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose([word], CONF)

    text = str(raised.value)
    for part in MISTAKES[word]:
        assert part in text, text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("adapter=abba adapter.rank1=8 federation.round=2", "federation.round=2: unknown key"),
        ("+adapter.speed=4 federation.round=2", "federation.round=2: unknown key"),
        ("adapter=abba adapter.rank=8", "adapter.rank=8: unknown key 'adapter.rank'; adapter has"),
    ],
)
def test_the_word_that_is_wrong_is_named(words: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose(words.split(), CONF)

    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("adapter.rank=eight", ["adapter.rank=eight must be a number"]),
        ("adapter.rank=true", ["adapter.rank=True must be a number"]),
        ("+adapter.speed=4", ["adapter has no key 'speed'", "dropout, init, rank, targets"]),
    ],
)
def test_a_mistaken_adapter_setting_is_refused(word: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        make_adapter(compose([word], CONF))

    assert all(part in str(raised.value) for part in parts), str(raised.value)


@pytest.mark.parametrize(
    "change",
    [{"seed": "x"}, {"sed": 1}, {"train": {"stepz": 1}}, {"train": {"schedule": "up"}}],
    ids=str,
)
def test_what_arrives_is_checked_again(change: dict[str, Any]) -> None:
    plain = json.loads(to_json(default()))
    for key, value in change.items():
        plain[key] = plain[key] | value if isinstance(value, dict) else value

    with pytest.raises(Exception, match=r"seed|sed|stepz|schedule"):
        from_json(json.dumps(plain))


# --- own models and rows -----------------------------------------------------------------------


def test_a_folder_or_hub_name_is_a_model(tmp_path: Path) -> None:
    assert compose([f"model={tmp_path}"], CONF).model.name == str(tmp_path)
    assert compose(["model=org/name"], CONF).model.name == "org/name"
    assert compose(["model=org/name", "model.dtype=float32"], CONF).model.dtype == "float32"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "org/rows"])
def test_a_file_or_hub_name_is_data(name: str) -> None:
    config = compose([f"data={name}"], CONF)

    assert config.data.source == name
    assert config.partition.kind == "iid"


def test_a_path_with_spaces_and_signs_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "my rows, (new).jsonl"
    path.write_text("{}")

    assert compose([f"data={path}"], CONF).data.source == str(path)


@pytest.mark.parametrize("turned", [False, True])
def test_a_partition_that_is_asked_for_stays(turned: bool) -> None:
    words = ["data=rows.jsonl", "data.group=user", "partition=natural"]

    config = compose(words[::-1] if turned else words, CONF)

    assert (config.partition.kind, config.partition.column) == ("natural", "user")


def test_the_overrides_for_other_columns_compose_as_a_shell_reads_them() -> None:
    page = (CONF.parent / "docs" / "your-own-data.md").read_text(encoding="utf-8")
    table = page.split("| rows | overrides |")[1].split("\n\n")[0]
    made = []
    for words in re.findall(r"^\| [^|]+ \| `([^`]+)`", table, flags=re.MULTILINE):
        script = f"printf '%s\\0' {words}"
        read = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        made.append(compose(["data=rows.jsonl", *read.stdout.split("\0")[:-1]], CONF).data)

    assert len(made) == 7
    assert made[0].prompt == "Q: {question}\nA: "
    assert (made[-1].choice, made[-1].choices) == ("output", ["yes", "no"])


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_the_command_that_heads_a_file_composes(path: Path) -> None:
    commands = re.findall(r"""^#.*'overrides="(.*)"'$""", path.read_text(), flags=re.MULTILINE)

    for words in commands:
        assert isinstance(compose(words.split(), CONF), Config)


# --- what a configuration may call -------------------------------------------------------------

EVIL = [
    "",
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "fedtuners.adapters",
    "fedtuners.adapters.Nothing",
    "fedtuners.adapters.Adapter",
    "fedtuners.adapters.export_lora",
    "fedtuners.adapters.Start",
    "fedtuners.adapters.base.torch.load",
    "fedtuners.adapters.base.torch.hub.load",
    "fedtuners.adapters.base.nn.Linear",
    "fedtuners.adapters.lora.LoraConfig",
    "fedtuners.adapters.export.Path",
    "fedtuners.adapters_evil.Lora",
    "fedtuners.demo.pretrain.main",
]


@pytest.mark.parametrize("target", EVIL)
def test_only_an_adapter_of_ours_is_made(target: str) -> None:
    config = default()
    config.adapter = {"_target_": target}

    with pytest.raises(ConfigError, match="is not an adapter of"):
        make_adapter(config)


@pytest.mark.parametrize("trick", ["_args_", "_partial_", "_recursive_", "_convert_"])
def test_instantiations_own_words_are_unknown_keys(trick: str) -> None:
    config = default()
    config.adapter = {"_target_": "fedtuners.adapters.Lora", trick: True}

    with pytest.raises(ConfigError, match=f"adapter has no key '{trick}'"):
        make_adapter(config)


def test_a_target_inside_a_value_is_not_called(tmp_path: Path) -> None:
    mark = tmp_path / "called"
    config = compose(["adapter=lora"], CONF)
    config.adapter["targets"] = {"_target_": "pathlib.Path.touch", "self": str(mark)}

    adapter = make_adapter(config)

    assert not mark.exists()
    assert isinstance(adapter, Lora)


def test_every_adapter_is_made_of_its_file() -> None:
    made = {word: make_adapter(compose([f"adapter={word}"], CONF)) for word in ("lora", "abba")}

    assert isinstance(made["lora"], Lora)
    assert isinstance(made["abba"], Abba)
    assert class_named("fedtuners.adapters.Lora", "fedtuners.adapters.") is Lora
