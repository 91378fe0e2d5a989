"""A federation of processes over gRPC: the same result as in one process, and doors that hold."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from services import (
    FED_SB,
    FEDEX_LORA,
    ROOT,
    Services,
    assert_close,
    brought_up,
    free_ports,
    simulated,
)

from fedtuners.cli.federation import private
from strategies.secure import CONFIRM

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Two sites, of which the first keeps no warm worker."""
    yield from brought_up(
        *(tmp_path_factory.mktemp("fleet") / "f", "site-a", "site-b"),
        FEDTUNERS_ROWS="300",
        SITE_A="worker=0",
    )


@pytest.mark.parametrize("method", [FED_SB, FEDEX_LORA], ids=["Fed-SB", "FedEx-LoRA"])
def test_the_result_is_that_of_a_simulation(
    services: Services, method: str, tmp_path: Path
) -> None:
    # Execute
    done = services.once("submit", FEDTUNERS_RUN=method)

    # Assert
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exact_match" in done.stdout
    reference = simulated(services, method, tmp_path / "simulated")
    assert_close(services.run_folder, reference)
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (services.run_folder, reference)
    ]
    for deployed, simulated_line in zip(*lines, strict=True):
        for key in deployed.keys() & {"up", "num-examples", "tokens", "exact_match"}:
            assert deployed[key] == simulated_line[key]
    assert loads(services, "site-a") > loads(services, "site-b") == 1
    ours = json.loads((services.run_folder / "summary.json").read_text())["bytes"]["total"]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Flower counted")]
    flowers = sum(int(number.replace(",", "")) for number in re.findall(r"[\d,]{4,}", line))
    assert ours < flowers < 1.05 * ours + 200_000, (ours, line)


def test_a_signed_secure_sum_over_the_network_is_the_plain_one(
    services: Services, tmp_path: Path
) -> None:
    # Execute: a start from the clients' sketches and one round, three sums in all.
    method = f"{FED_SB} federation.rounds=1"
    done = services.once("submit", FEDTUNERS_RUN=f"{method} aggregation=secagg")

    # Assert
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("a secure sum of 2 clients, keys signed") == 3
    for site in ("site-a", "site-b"):
        assert services.log(site).count(f"Receiving: {CONFIRM}") == 3
    # The sums' rounding, magnified by the decomposition of the sketches.
    reference = simulated(services, method, tmp_path / "simulated")
    assert_close(services.run_folder, reference, atol=1e-5)


def test_a_sites_rows_have_one_budget_for_all_private_runs(services: Services) -> None:
    """The first run spends it; another one is told so, and nobody trains for it."""
    method = f"{FED_SB} adapter.init=weights federation.rounds=1 privacy=example"

    done = services.once("submit", FEDTUNERS_RUN=method)

    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((services.run_folder / "summary.json").read_text())["privacy"]
    assert 2.9 < told["epsilon"] <= 3
    again = services.once("submit", FEDTUNERS_RUN=f"{method} seed=1")
    assert again.returncode == 1
    assert "privacy budget spent: these rows have cost ε 2.99" in again.stdout + again.stderr


def loads(services: Services, site: str) -> int:
    """How often a site loaded the base model in the newest run."""
    text = (services.root(f"{site}-executor") / "state" / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    newest = [line for line in lines if line["run"] == lines[-1]["run"]]
    return sum("loaded base model" in line["message"] for line in newest)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ("strategy=no_such_method", 2, "no_such_method"),
        (f"{FEDEX_LORA} federation.minimum_nodes=9 federation.wait=5", 1, "nodes came within"),
    ],
    ids=["refused before the start", "failed at the server"],
)
def test_the_exit_code_says_that_a_run_failed(
    services: Services, words: str, code: int, sentence: str
) -> None:
    done = services.once("submit", FEDTUNERS_RUN=words)
    assert done.returncode == code
    assert sentence in done.stdout + done.stderr


def test_admitting_again_changes_nothing(services: Services) -> None:
    done = services.once("admit")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("was admitted before") == 3


def listening() -> dict[int, str]:
    """Port → address (hexadecimal) of this machine's listening IPv4 and IPv6 sockets."""
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A":
                address, port = local.split(":")
                found[int(port, 16)] = address
    return found


def test_only_the_fleet_port_is_public(services: Services) -> None:
    addresses = listening()
    loopback = {"0100007F", "00000000000000000000000001000000"}
    assert addresses[services.ports["9092"]] not in loopback
    for port in ("8000", "9094", "9095"):
        assert addresses[services.ports[port]] in loopback, port


def test_plain_text_is_refused(services: Services) -> None:
    channel = grpc.insecure_channel(f"127.0.0.1:{services.ports['9092']}")
    with pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(timeout=3)
    channel.close()


def test_a_site_that_trusts_another_ca_does_not_connect(services: Services, tmp_path: Path) -> None:
    other = Services(tmp_path / "other")
    other.once("keys")
    ca = (tmp_path / "other/volumes/keys/server/ca.crt").read_bytes()
    address = f"127.0.0.1:{services.ports['9092']}"
    channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca))
    with pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(timeout=3)
    channel.close()


def attempt(services: Services, service: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A process like a service's, with other words, which must not last."""
    return subprocess.run(
        words,
        env=services.environment(service),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_unregistered_node_is_refused(services: Services, tmp_path: Path) -> None:
    # Prepare: a site's certificate, address and settings, and a key that nobody admitted.
    key = ec.generate_private_key(ec.SECP384R1())
    path = tmp_path / "node.key"
    path.write_bytes(private(key, serialization.PrivateFormat.OpenSSH))
    words = services.command("site-a")
    words[words.index("--auth-supernode-private-key") + 1] = str(path)
    words[words.index("--port") + 1] = str(free_ports(1)[0])

    # Execute
    done = attempt(services, "site-a", *words)

    # Assert
    assert done.returncode != 0
    assert "305" in done.stdout + done.stderr


@pytest.mark.parametrize("door", ["server", "site-a-executor"])
@pytest.mark.parametrize("secret", [None, os.urandom(32)], ids=["none", "wrong"])
def test_an_executor_without_the_secret_gets_no_task(
    services: Services, door: str, secret: bytes | None, tmp_path: Path
) -> None:
    # Prepare
    words = services.command(door)
    place = words.index("--superexec-auth-secret-file")
    if secret is None:
        del words[place : place + 2]
    else:
        (tmp_path / "secret").write_bytes(secret)
        words[place + 1] = str(tmp_path / "secret")

    # Execute
    done = attempt(services, door, *words)

    # Assert: it gives up by itself, at once, and has started nothing.
    said = done.stdout + done.stderr
    assert "Start `flwr-" not in said
    assert "task" not in said.lower() or "401" in said or "unauthorized" in said.lower(), said
