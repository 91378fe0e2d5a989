"""kill -9 of every part of a deployment; what comes out is what would have come out without it."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from flwr.app import Message
from services import FEDEX_LORA, ROOT, Services, assert_close, brought_up, simulated, wait_for

from server_app.polling import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# Rounds of some seconds' training, so that what is killed two seconds into one is killed within it.
RUN = FEDEX_LORA.replace("train.steps=2", "train.steps=60")
RESUME = "federation.minimum_nodes=2 resume=latest"  # of the file's three sites, two are started


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    yield from brought_up(
        tmp_path_factory.mktemp("fleet") / "f", "site-a", "site-b", FEDTUNERS_ROWS="300"
    )


@pytest.fixture(scope="module")
def undisturbed(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the same run that nobody disturbs."""
    return simulated(services, RUN, tmp_path_factory.mktemp("simulated"))


def submitted(services: Services, overrides: str) -> "subprocess.Popen[bytes]":
    """A run that goes on in the background, and in which site-b works on its second round."""
    services.chosen["FEDTUNERS_RUN"] = overrides
    before = services.run_folder
    process = subprocess.Popen(
        services.command("submit"),
        env=services.environment("submit"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: services.run_folder != before, 300, "a run folder")
    read = len(services.log("site-b"))
    trains = "Receiving: train message"
    wait_for(lambda: services.log("site-b")[read:].count(trains) == 2, 400, "the second round")
    time.sleep(2)  # the executor has begun with it
    return process


def go_on(services: Services, undisturbed: Path) -> None:
    """Resume the last run, and assert that it ends as if nothing had happened."""
    folder = services.run_folder
    done = services.once("submit", FEDTUNERS_RUN=RESUME)
    assert done.returncode == 0, done.stdout + done.stderr
    assert services.run_folder == folder
    assert_close(folder, undisturbed)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 2 * 3  # before, and then two clients and the model in each round


def test_the_server_process_dies_in_a_round(services: Services, undisturbed: Path) -> None:
    process = submitted(services, RUN)
    services.kill("server")  # the executor and the ServerApp that it started
    process.kill()
    services.start("server")
    go_on(services, undisturbed)


def test_the_superlink_dies_in_a_round(services: Services, undisturbed: Path) -> None:
    process = submitted(services, RUN)
    services.kill("superlink")
    process.kill()
    services.start("superlink")
    services.await_health("superlink")
    go_on(services, undisturbed)


def test_a_site_dies_in_a_round_and_takes_part_again(services: Services, tmp_path: Path) -> None:
    # Prepare: more rounds than the site misses, and a server that goes on without it.
    overrides = RUN.replace("rounds=2", "rounds=5") + " federation.minimum_replies=1"
    process = submitted(services, overrides)

    # Execute: kill it, and start it again for as long as it is refused, as `restart: always` does.
    services.kill("site-b")
    services.kill("site-b-executor")
    shutil.rmtree(services.root("site-b-executor") / "state" / "flwr", ignore_errors=True)
    services.start("site-b-executor")
    attempts = 0
    while process.poll() is None:
        if "site-b" not in services.running or services.running["site-b"].poll() is not None:
            services.start("site-b")
            attempts += 1
        time.sleep(2)

    # Assert: it was refused at first, missed a round or two, and was there at the end.
    assert process.returncode == 0
    assert attempts > 1
    missed = rounds_without(services.run_folder, client=1)
    assert missed
    assert 5 not in missed

    def script(request: Message, reply: Message) -> list[Message]:
        asked = request.content.config_records["request"]
        lost = asked["client"] == 1 and asked["round"] in missed
        return [] if lost and request.metadata.message_type == "train" else [reply]

    assert_close(services.run_folder, simulated(services, overrides, tmp_path, script))


def test_a_site_that_is_back_before_it_is_missed_costs_two_minutes(services: Services) -> None:
    # Prepare: the server looks away.
    process = submitted(services, RUN + " federation.minimum_replies=1")
    server = process_of(services, "flwr-serverapp")
    os.kill(server, signal.SIGSTOP)

    # Execute: a site is stopped while it works on the second round, and started again.
    read = len(services.log("site-b"))
    services.kill("site-b-executor")
    os.killpg(services.running["site-b"].pid, signal.SIGTERM)
    services.running.pop("site-b").wait(30)
    services.start("site-b", "site-b-executor")
    services.await_log("site-b", "SuperNode ID", after=read)
    os.kill(server, signal.SIGCONT)
    assert process.wait(600) == 0

    # Assert: the round ended without it, long before its deadline of an hour.
    lines = [json.loads(x) for x in (services.run_folder / "metrics.jsonl").open()]
    second = next(line for line in lines if line["round"] == 2 and "client" not in line)
    assert second["problems"] == {"1": "its node went away (Flower error 5)"}
    assert PATIENCE < second["training_seconds"] < 2 * PATIENCE


def process_of(services: Services, name: str) -> int:
    """The process of this name that the server's executor has started."""
    parent = services.running["server"].pid
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            own = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(own[1]) == parent and name in (folder / "cmdline").read_text():
                return int(folder.name)
    raise AssertionError(f"{name} does not run")


def rounds_without(folder: Path, client: int) -> list[int]:
    """The rounds in which a client's answer is missing."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    there = {line["round"] for line in lines if line.get("client") == client}
    return sorted({line["round"] for line in lines if line["round"] > 0} - there)
