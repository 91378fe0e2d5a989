"""docker-compose.yml and the Dockerfile: their structure, and that every command is one that runs.

Only files are read here; test_deployment.py starts the same services as processes.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from services import PORTS, Services, image_environment

ROOT = Path(__file__).resolve().parents[2]
SITES = ("site-a", "site-b", "site-c")
DAEMONS = {"superlink", "server", *SITES, *(f"{site}-executor" for site in SITES)}


@pytest.fixture(scope="module")
def file() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_only_the_fleet_port_is_published(file: dict[str, Any]) -> None:
    published = {name: s["ports"] for name, s in file["services"].items() if "ports" in s}
    assert published == {"superlink": ["9092:9092"]}


def test_control_and_runtime_listen_on_internal_networks_alone(file: dict[str, Any]) -> None:
    for name in ("superlink", *SITES):
        service = file["services"][name]
        host = option(service["command"], "--host")
        (network,) = (
            net for net, about in service["networks"].items() if host in about.get("aliases", [])
        )
        assert file["networks"][network] == {"internal": True}
        members = {n for n, s in file["services"].items() if network in s.get("networks", [])}
        allowed = {"superlink", "admit", "server", "submit"} if name == "superlink" else set()
        assert members == (allowed or {name, f"{name}-executor"})


def test_every_service_is_confined(file: dict[str, Any]) -> None:
    for name, service in file["services"].items():
        assert service["read_only"], name
        assert service["user"] == "10001", name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name


def test_what_serves_is_started_again_whatever_its_exit_code(file: dict[str, Any]) -> None:
    for name, service in file["services"].items():
        assert service["restart"] == ("always" if name in DAEMONS else "no"), name


def test_every_door_has_its_lock(file: dict[str, Any]) -> None:
    for name in DAEMONS:
        command = file["services"][name]["command"]
        secret = option(command, "--superexec-auth-secret-file")
        assert secret.startswith("/federation/"), name
        if command[0] != "flower-superexec":
            assert option(command, "--isolation") == "process"
    assert "--enable-supernode-auth" in file["services"]["superlink"]["command"]
    assert not any("--insecure" in file["services"][site]["command"] for site in SITES)


def test_a_site_sees_its_own_keys_and_rows_alone(file: dict[str, Any]) -> None:
    for name, service in file["services"].items():
        for volume in (v for v in service.get("volumes", []) if isinstance(v, dict)):
            inside = volume["volume"]["subpath"]
            if name.startswith("site-"):
                site = name.removesuffix("-executor")
                assert inside in (f"sites/{site}", site), name
                assert volume["read_only"], name
            else:
                assert inside in ("server", "flwr"), name


def test_conditions_volumes_and_networks_exist(file: dict[str, Any]) -> None:
    for name, service in file["services"].items():
        for other, about in service.get("depends_on", {}).items():
            needed = file["services"][other]
            if about["condition"] == "service_healthy":
                assert "healthcheck" in needed, (name, other)
            if about["condition"] == "service_completed_successfully":
                assert needed["restart"] == "no", (name, other)
        for volume in service.get("volumes", []):
            source = volume.split(":")[0] if isinstance(volume, str) else volume["source"]
            assert source in file["volumes"], name
        assert set(service.get("networks", [])) <= set(file["networks"]), name


def test_every_option_is_one_that_its_program_knows(file: dict[str, Any], tmp_path: Path) -> None:
    services = Services(tmp_path / "f")
    programs = {s["command"][0] for s in file["services"].values()} - {"sh", "python", "fedtuners"}
    known = {}
    for program in programs:
        path = Path(sys.executable).with_name(program)
        shown = subprocess.run([path, "--help"], capture_output=True, text=True, check=True)
        known[program] = set(re.findall(r"--[a-z-]+", shown.stdout))
    for name in DAEMONS:
        program, *words = services.command(name)
        assert {word for word in words if word.startswith("--")} <= known[program], name


def test_every_port_is_translated(file: dict[str, Any]) -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"\b(?:80|90)\d\d\b", text)) == set(PORTS)


def test_the_gpu_file_gives_each_executor_a_gpu_of_its_own(file: dict[str, Any]) -> None:
    override = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text(encoding="utf-8"))
    gpus = []
    for name, service in override["services"].items():
        assert name in file["services"]
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"
        assert device["capabilities"] == ["gpu"]
        gpus += device["device_ids"]
    assert set(override["services"]) == {f"{site}-executor" for site in SITES}
    assert len(set(gpus)) == len(SITES)


@pytest.mark.parametrize("files", [[], ["docker-compose.gpu.yml"]])
def test_docker_compose_accepts_the_files(files: list[str]) -> None:
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("no docker compose here")
    chosen = [word for name in ["docker-compose.yml", *files] for word in ("-f", name)]
    subprocess.run([docker, "compose", *chosen, "config", "--quiet"], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.gpu.yml"])
def test_the_files_follow_the_compose_schema(name: str, tmp_path: Path) -> None:
    check = [Path(sys.executable).with_name("check-jsonschema")]
    check += ["--builtin-schema", "vendor.compose-spec"]
    subprocess.run([*check, name], cwd=ROOT, check=True)
    wrong = (ROOT / name).read_text(encoding="utf-8").replace("services:", "servces:", 1)
    (tmp_path / name).write_text(wrong)
    assert subprocess.run([*check, tmp_path / name], capture_output=True).returncode == 1


# The image


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_dockerfile_is_sound() -> None:
    found = instructions()
    assert found[0] == ("FROM", "python:3.11-slim")
    assert [value for name, value in found if name == "USER"] == ["10001"]
    assert found[-1][0] == "USER"  # nothing after it runs as root
    assert not {name for name, _ in found} & {"ADD", "MAINTAINER", "VOLUME"}
    for name, value in found:
        if name == "RUN":
            assert "sudo" not in value
            assert "apt-get" not in value or "rm -rf /var/lib/apt/lists" in value
        if name in ("COPY", "WORKDIR"):
            assert ".." not in value


def test_the_dockerfiles_linter_finds_nothing() -> None:
    program = Path(sys.executable).with_name("hadolint")
    # DL3013: versions are pinned by constraints.txt.
    command = [program, "--ignore", "DL3013", "docker/Dockerfile"]
    subprocess.run(command, cwd=ROOT, check=True)


def test_the_image_pins_what_it_installs() -> None:
    installs = [value for name, value in instructions() if "pip install" in value]
    assert all("--constraint constraints.txt" in v or "${TORCH}" in v for v in installs)
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert all("==" in pin for pin in pins)
    torch = next(value for name, value in instructions() if value.startswith("TORCH=torch=="))
    assert torch.removeprefix("TORCH=") in pins or not any(p.startswith("torch==") for p in pins)


def test_everything_copied_exists_and_is_not_ignored() -> None:
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for name, value in instructions():
        for source in shlex.split(value)[:-1] if name == "COPY" else []:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in allowed, source
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    copied = {value.split()[0] for name, value in instructions() if name == "COPY"}
    assert {pattern.split("/")[0] for pattern in shipped["fab-include"]} <= copied


def test_the_image_keeps_state_in_its_volumes() -> None:
    environment = image_environment()
    for name in ("FLWR_HOME", "FEDTUNERS_STATE", "FEDTUNERS_OUTPUTS", "HF_HOME"):
        assert environment[name].startswith(("/state", "/outputs")), name
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


# The health of runs


def test_a_run_that_nobody_takes_up_is_noticed() -> None:
    from health import waiting

    now = datetime(2026, 1, 1, 12, 10, tzinfo=UTC)
    runs = json.loads(
        '[{"run-id": "1", "status": "pending", "pending-at": "2026-01-01 12:00:00Z"},'
        ' {"run-id": "2", "status": "pending", "pending-at": "2026-01-01 12:09:30Z"},'
        ' {"run-id": "3", "status": "running", "pending-at": "2026-01-01 12:00:00Z"},'
        ' {"run-id": "4", "status": "starting", "pending-at": "2026-01-01 12:00:00Z"}]'
    )
    assert waiting(runs, now) == ["1", "4"]
