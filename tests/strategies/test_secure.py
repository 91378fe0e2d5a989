"""Secure aggregation over messages: the mean, drop-outs, refusals, and what the server sees."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from local_grid import LocalGrid

from client_app import handlers
from fedtuners.config import ConfigError
from strategies.exchange import TooFewRepliesError
from strategies.mean import weighted_mean
from strategies.messages import HELLO, SKETCH, TRAIN, read_reply, read_request
from strategies.secure import CONFIRM, KEYS, SHARES, UNMASK, Secagg, vector_of

Made = Callable[..., Any]
FFA = ("aggregation=secagg", "strategy=ffa_lora", "adapter=lora", "train.steps=1")
STAGES = (KEYS, SHARES, TRAIN, UNMASK)


def losing(stage: str, clients: set[int]) -> Callable[[Message, Message], list[Message]]:
    """A script in which the answers of some clients are lost from one stage of round 1 on."""
    gone: set[int] = set()

    def script(request: Message, reply: Message) -> list[Message]:
        asked = read_request(request.content)
        if asked.round == 1 and request.metadata.message_type == stage:
            gone.update(clients & {asked.client})
        return [] if asked.client in gone else [reply]

    return script


class Plain:
    """Keeps what each client would have sent without protection, from inside its process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.uploads: dict[tuple[int, int, str], tuple[dict[str, torch.Tensor], int, float]] = {}
        inner = handlers.Client._tensors

        def kept(client: Any, state: Any, metrics: Any, dtype: Any = None) -> Any:
            purpose = client.secure.purpose
            key = (client.request.round, client.request.client, purpose)
            loss = float(metrics.get("loss", 0.0))
            self.uploads[key] = (state, int(metrics["num-examples"]), loss)
            return inner(client, state, metrics, dtype)

        monkeypatch.setattr(handlers.Client, "_tensors", kept)

    def mean(self, round_: int, clients: list[int], purpose: str = "train") -> Any:
        found = [self.uploads[round_, client, purpose] for client in clients]
        states = [{k: v.double() for k, v in state.items()} for state, _, _ in found]
        weights = [examples for _, examples, _ in found]
        loss = np.average([loss for _, _, loss in found], weights=weights)
        return weighted_mean(states, weights), sum(weights), loss


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Plain:
    return Plain(monkeypatch)


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=fedavg_lora", "adapter=lora"),
        ("strategy=ffa_lora", "adapter=lora"),
        ("strategy=fed_sb", "adapter=lora_sb"),
        ("strategy=fed_sb", "adapter=lora_sb", "aggregation.bits=32", "aggregation.clip=8",
         "aggregation.max_examples=4096"),
    ],
)  # fmt: skip
def test_the_result_is_the_weighted_mean(
    federation: Made, plain: Plain, overrides: tuple[str, ...]
) -> None:
    made = federation("aggregation=secagg", *overrides)

    made.rounds(2)

    mean, weight, loss = plain.mean(2, [0, 1, 2])
    secagg: Secagg = made.strategy.aggregation
    bound = secagg.encoding(3).error_bound(3, weight)
    assert made.strategy.state.keys() == mean.keys()
    for name, tensor in made.strategy.state.items():
        half_a_step = torch.finfo(tensor.dtype).eps * mean[name].abs()
        assert bool(((tensor.double() - mean[name]).abs() <= bound + half_a_step).all())
    assert made.reports[2].together["loss"] == pytest.approx(loss, abs=bound + 1e-12)


def test_the_sketches_of_a_federated_start_go_the_same_way(federation: Made, plain: Plain) -> None:
    grid = LocalGrid(2)
    federation("aggregation=secagg", "strategy=fed_sb", "start.source=clients", grid=grid)
    assert {purpose for _, _, purpose in plain.uploads} == {"range", "core"}
    sketches = [m for m in grid.replies if m.metadata.message_type == SKETCH]
    assert len(sketches) == 6
    assert all(list(read_reply(m.content).arrays or []) == ["masked"] for m in sketches)


def test_named_states_can_be_summed_outside_a_round(federation: Made, plain: Plain) -> None:
    """`mean` is the door for anything a client can upload; here the first sketch."""
    made = federation("aggregation=secagg", "strategy=fed_sb", "start.source=server")
    like = {name: torch.empty(m, 4) for name, (m, _) in made.tuned.shapes.items()}
    messages = [made.exchange.message(SKETCH, c, 0, extra={"width": 4}) for c in range(3)]
    mean = made.strategy.aggregation.mean(made.exchange, messages, "range", like, 60.0)
    expected = plain.mean(0, [0, 1, 2], "range")[0]
    for name in like:
        assert torch.allclose(mean[name].double(), expected[name], atol=1e-6)


@pytest.mark.parametrize(("stage", "gone"), [(TRAIN, {0}), *[(stage, {2, 4}) for stage in STAGES]])
def test_drop_outs_up_to_the_threshold_leave_the_mean_of_the_rest(
    federation: Made, plain: Plain, stage: str, gone: set[int]
) -> None:
    grid = LocalGrid(2, script=losing(stage, gone))
    made = federation(
        *(*FFA, "aggregation.threshold=0.6", "federation.clients=5"),
        grid=grid,
    )

    made.rounds(1)

    survivors = [c for c in range(5) if stage == UNMASK or c not in gone]
    mean, weight, _ = plain.mean(1, survivors)
    bound = made.strategy.aggregation.encoding(5).error_bound(5, weight)
    for name, tensor in made.strategy.state.items():
        half_a_step = torch.finfo(tensor.dtype).eps * mean[name].abs()
        assert bool(((tensor.double() - mean[name]).abs() <= bound + half_a_step).all())


@pytest.mark.parametrize("stage", STAGES)
def test_one_drop_out_more_ends_the_run_with_a_reason(federation: Made, stage: str) -> None:
    grid = LocalGrid(2, script=losing(stage, {0, 1, 3}))
    made = federation(
        *(*FFA, "aggregation.threshold=0.6", "federation.clients=5"),
        grid=grid,
    )
    with pytest.raises(TooFewRepliesError, match=r"2 clients .* needs 3 .*client 0: did not"):
        made.rounds(1)
    assert made.strategy.completed == 0


def test_the_server_never_sees_an_unmasked_upload(federation: Made, plain: Plain) -> None:
    """All that clients sent in a run, and what each of it can hold."""
    grid = LocalGrid(2)
    made = federation("aggregation=secagg", "strategy=fedavg_lora", "adapter=lora", grid=grid)

    made.rounds(2)

    uploads = 0
    for message in grid.replies:
        kind, reply = message.metadata.message_type, read_reply(message.content)
        if kind == TRAIN:
            uploads += 1
            assert reply.arrays is not None
            assert list(reply.arrays) == ["masked"]
            assert set(reply.metrics) <= {"seconds"}
            assert set(reply.extra) == {"manifest"}
            sent = reply.arrays["masked"].numpy()
            state, examples, loss = plain.uploads[reply.round, reply.client, "train"]
            clear = made.strategy.aggregation.encoding(3).encode(vector_of(state, loss), examples)
            assert not np.any(sent == clear)
            assert abs(bits_set(sent) - 0.5) < 0.02
            assert abs(bits_set(clear) - 0.5) > 0.02
        else:
            assert reply.arrays is None
            assert reply.metrics == {}
            expected = {KEYS: {"keys"}, SHARES: {"shares"}, UNMASK: {"seeds", "keys"}}
            if kind != HELLO:
                assert set(reply.extra) == expected[kind]
    assert uploads == 6


def bits_set(vector: np.ndarray) -> float:
    """The share of ones among all bits."""
    return float(np.unpackbits(vector.view(np.uint8)).mean())


def test_private_training_tells_no_number_of_rows_either(federation: Made) -> None:
    """δ, σ, the sampling rate and an exact ε each follow from it."""
    made = federation(*FFA, "privacy=example", "federation.rounds=1")
    made.rounds(1)
    said = [update.metrics for update in made.reports[1].updates]
    assert said == [{"epsilon": 3.0}] * 3
    assert made.reports[1].together == {}


def test_keys_are_new_every_round_and_gone_after_it(federation: Made, tmp_path: Path) -> None:
    grid = LocalGrid(2)
    made = federation(*FFA, grid=grid)
    made.rounds(2)
    announced = [
        reply.extra["keys"]
        for reply in (read_reply(message.content) for message in grid.replies)
        if "keys" in reply.extra and "seeds" not in reply.extra
    ]
    keys = [entry[name] for entry in announced for name in ("channel", "mask")]
    left = [path for path in tmp_path.rglob("secagg/*") if path.stat().st_size > 0]
    assert len(keys) == len(set(keys)) == 12
    assert left == []


def test_private_keys_are_for_their_owner_alone(federation: Made, tmp_path: Path) -> None:
    modes: list[int] = []

    def watch(request: Message, reply: Message) -> list[Message]:
        modes.extend(path.stat().st_mode & 0o777 for path in tmp_path.rglob("secagg/*.json"))
        return [reply]

    made = federation(
        *FFA,
        grid=LocalGrid(2, script=watch),
    )
    made.rounds(1)
    assert set(modes) == {0o600}


def ask(made: Any, kind: str, client: int = 0, **extra: Any) -> Any:
    """One message of a server that does as it likes."""
    arrays = made.strategy.packed() if kind == TRAIN else None
    message = made.exchange.message(kind, client, 1, arrays=arrays, extra=extra)
    (reply,) = made.grid.send_and_receive([message])
    return read_reply(reply.content)


def test_a_second_sum_for_a_round_is_refused_unless_the_site_allows_it(federation: Made) -> None:
    made = federation(*FFA)
    made.rounds(1)
    assert "already helped to unmask round 1" in ask(made, KEYS, purpose="train").error
    assert "holds no keys" in ask(made, UNMASK, purpose="train", survivors=[0, 1, 2]).error
    made.grid.configs = {1: {"partition-id": 0, "secagg-repeat": 1}}
    assert ask(made, KEYS, purpose="train").error == ""


def test_a_client_trains_for_no_server_that_skips_the_protocol(
    federation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = federation(*FFA)
    monkeypatch.setattr(handlers, "train", lambda *_: pytest.fail("it trained"))
    assert "holds no keys for the sum 'train' of round 1" in ask(made, TRAIN).error
    ask(made, KEYS, purpose="train")
    assert "peers of this sum are not agreed" in ask(made, TRAIN).error
    assert "nothing called 'again'" in ask(made, KEYS, purpose="again").error


def test_shares_come_out_once_and_only_for_a_sum_at_the_threshold(federation: Made) -> None:
    """A server that asks for a smaller sum, before the one agreed on and after it."""
    errors: list[str] = []

    def greedy(message: Message, context: Context) -> Message:
        if message.metadata.message_type != UNMASK:
            return handlers.answer(message, context)
        honest = message.content.config_records["request"]["extra"]
        replies = []
        for survivors in ([0, 1], [0, 1, 2, 3], [0, 1, 2]):
            asked = json.dumps({**json.loads(str(honest)), "survivors": survivors})
            message.content.config_records["request"]["extra"] = asked
            replies.append(handlers.answer(message, context))
        errors.extend(read_reply(reply.content).error for reply in replies)
        return replies[1]

    made = federation(
        *(*FFA, "federation.clients=4"),
        grid=LocalGrid(2, client=greedy),
    )
    made.rounds(1)
    below, agreed, again = errors[:3]
    assert "a sum over 2 clients is below the threshold of 3" in below
    assert agreed == ""
    assert "holds no keys" in again


def test_sites_can_insist(federation: Made) -> None:
    configs = {node: {"partition-id": node - 1, "secagg-only": 1} for node in (1, 2)}
    with pytest.raises(TooFewRepliesError, match="aggregation=secagg only"):
        federation("strategy=ffa_lora", "adapter=lora", grid=LocalGrid(2, configs))
    federation(*FFA, grid=LocalGrid(2, configs))


def test_methods_that_need_single_uploads_are_refused(settings: Made) -> None:
    from fedtuners.config import make_adapter
    from strategies.aggregation import make_aggregation
    from strategies.fedex_lora import FedExLora

    config = settings("aggregation=secagg", "strategy=fedex_lora", "adapter=lora")
    with pytest.raises(ConfigError, match="fedex_lora needs each client's own factors: choose"):
        make_aggregation(config).check(FedExLora(make_adapter(config)), config)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("aggregation.threshold=0.5", "above 0.5"),
        ("aggregation.bits=16", "bits=16"),
        ("aggregation.clip=0", "above 0"),
        ("+aggregation.other=1", "no key 'other'; it has threshold, clip, max_examples"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: Made, override: str, words: str) -> None:
    from strategies.aggregation import make_aggregation

    with pytest.raises(ConfigError, match=words):
        make_aggregation(settings("aggregation=secagg", override))


def test_two_kinds_of_aggregation_exclude_each_other(settings: Made) -> None:
    with pytest.raises(ConfigError, match="krum and aggregation=secagg exclude each other"):
        settings("aggregation=secagg", "aggregation=krum")


def test_only_aggregations_of_this_package_are_built(settings: Made) -> None:
    from strategies.aggregation import make_aggregation

    config = settings()
    for target in ("os.system", "strategies.secure.SecureSum", "strategies.nowhere.Mean"):
        config.aggregation = {"_target_": target}
        with pytest.raises(ConfigError, match="not an aggregation of strategies/"):
            make_aggregation(config)


def test_a_masked_upload_of_the_wrong_length_counts_as_dropped_out(
    federation: Made, plain: Plain
) -> None:
    from flwr.app import Array, ArrayRecord
    from local_grid import falsified

    def short(request: Message, reply: Message) -> list[Message]:
        if request.metadata.message_type != TRAIN or read_request(request.content).client != 1:
            return [reply]
        return [falsified(reply, arrays=ArrayRecord({"masked": Array(np.zeros(3, np.uint64))}))]

    made = federation(
        *FFA,
        grid=LocalGrid(2, script=short),
    )
    made.rounds(1)
    assert "wrong length" in made.reports[1].problems[1]
    mean = plain.mean(1, [0, 2])[0]
    for name, tensor in made.strategy.state.items():
        assert torch.allclose(tensor.double(), mean[name], atol=1e-6)


def with_keys(folder: Path, sites: int = 3) -> dict[int, dict[str, str | int]]:
    """The configs of sites that sign, and trust each other."""
    from privacy.secagg.test_identity import node_key

    keys = [node_key(folder, f"site{index}") for index in range(sites)]
    peers = folder / "peers"
    peers.write_text("".join(Path(f"{key}.pub").read_text() for key in keys))
    return {
        node: {"partition-id": node - 1, "secagg-key": str(key), "secagg-peers": str(peers)}
        for node, key in enumerate(keys, 1)
    }


def test_sites_with_keys_verify_each_other(
    federation: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = with_keys(tmp_path)
    grid = LocalGrid(3, configs)
    federation(*FFA, grid=grid).rounds(1)
    kinds = [message.metadata.message_type for message in grid.sent]
    assert [kinds.count(stage) for stage in (KEYS, SHARES, CONFIRM, UNMASK)] == [3, 3, 3, 3]

    del configs[3]["secagg-key"]
    monkeypatch.setenv("FEDTUNERS_STATE", str(tmp_path / "another"))
    with pytest.raises(TooFewRepliesError, match="client 2 are not signed by a site"):
        federation(*FFA, grid=LocalGrid(3, configs)).rounds(1)


def test_a_site_that_is_lost_before_it_signs_stays_in_the_sum(
    federation: Made, plain: Plain, tmp_path: Path
) -> None:
    grid = LocalGrid(3, with_keys(tmp_path), script=losing(CONFIRM, {2}))
    made = federation(*FFA, grid=grid)
    made.rounds(1)
    mean = plain.mean(1, [0, 1, 2])[0]
    for name, tensor in made.strategy.state.items():
        assert torch.allclose(tensor.double(), mean[name], atol=1e-6)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ((CONFIRM, UNMASK), "only 1 participants signed the same list of survivors; 2 must"),
        ((UNMASK,), "has not signed that these are the survivors"),
    ],
)
def test_a_server_that_lies_to_one_site_about_the_survivors_is_refused(
    federation: Made, tmp_path: Path, stages: tuple[str, ...], words: str
) -> None:
    """It tells client 0 that client 2 dropped out, to be given the share of its key."""

    def lied(message: Message, context: Context) -> Message:
        if message.metadata.message_type in stages and read_request(message.content).client == 0:
            record = message.content.config_records["request"]
            record["extra"] = json.dumps({**json.loads(str(record["extra"])), "survivors": [0, 1]})
        return handlers.answer(message, context)

    made = federation(*FFA, grid=LocalGrid(3, with_keys(tmp_path), client=lied))
    made.rounds(1)
    (refusal,) = [r.error for m in made.grid.replies if (r := read_reply(m.content)).error]
    assert words in refusal


def test_a_server_that_skips_the_signing_is_refused(
    federation: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedtuners.privacy.secagg import Roster

    monkeypatch.setattr(Roster, "signed", False)
    with pytest.raises(TooFewRepliesError, match="has not signed that these are the survivors"):
        federation(*FFA, grid=LocalGrid(3, with_keys(tmp_path))).rounds(1)
