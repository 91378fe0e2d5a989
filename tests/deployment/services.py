"""The services of docker-compose.yml as plain processes on the loopback.

Commands, environments and volumes are read from the file (and the image's ENV from the Dockerfile),
so what is tested is what is shipped. Three things are translated, and nothing else: host names
become 127.0.0.1, each port a free one, and a volume's mount point a folder.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from local_grid import LocalGrid
from safetensors.torch import load_file

from fedtuners.config import compose
from server_app.run import run

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ("superlink", "control", "runtime-a", "runtime-b", "runtime-c")
PORTS = ("9092", "8000", "9094", "9095", "9096")
MOUNTS = ("/federation", "/state", "/outputs", "/data", "/app")


class Services:
    """The federation of docker-compose.yml, its volumes in `folder`; ends what it started."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.chosen = environment
        self.file = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "log").mkdir(parents=True)

    # Translation

    def root(self, service: str) -> Path:
        """A folder that stands for `/` in a container of the service: its volumes, linked."""
        root = self.folder / "root" / service
        if root.exists():
            return root
        root.mkdir(parents=True)
        (root / "app").symlink_to(ROOT)
        for volume in self.file["services"][service].get("volumes", []):
            if isinstance(volume, str):
                name, target = volume.split(":")[:2]
                source = self.folder / "volumes" / name
            else:
                target, inside = volume["target"], volume["volume"]["subpath"]
                source = self.folder / "volumes" / volume["source"] / inside
            source.mkdir(parents=True, exist_ok=True)
            link = root / target.lstrip("/")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
        return root

    def translate(self, service: str, text: str) -> str:
        """A word of a command or a value of an environment, for this machine."""
        text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: self.chosen.get(m[1], m[2]), text)
        text = text.replace("$$", "$")
        # A node's config speaks of its executor's files.
        owner = f"{service}-executor" if text.startswith("name=") else service
        for mount in MOUNTS:
            path = self.root(owner) / mount.lstrip("/")
            text = re.sub(rf"(?<![\w/.-]){mount}(?=[/\s\"]|$)", str(path), text)
        for host in HOSTS:
            text = re.sub(rf"(?<![\w./-]){re.escape(host)}(?=:\d|$)", "127.0.0.1", text)
        for port, free in self.ports.items():
            text = re.sub(rf"(?<!\d){port}$", str(free), text)
        return text

    def command(self, service: str) -> list[str]:
        """The command of a service."""
        words = self.file["services"][service]["command"]
        return [self.translate(service, word) for word in words]

    def environment(self, service: str) -> dict[str, str]:
        """What a container of the service would see, and where this Python and its modules are."""
        own = self.file["services"][service].get("environment", {})
        words = {**image_environment(), **own}
        kept = ("PATH", "HOME", "PYTHONPATH", "LANG", "OMP_NUM_THREADS", "SSL_CERT_FILE")
        here = {name: os.environ[name] for name in kept if name in os.environ}
        return here | {name: self.translate(service, str(value)) for name, value in words.items()}

    # Processes

    def once(self, service: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a one-shot service to its end; `environment` sets the file's ${VARIABLES}."""
        self.chosen |= environment
        return subprocess.run(
            self.command(service),
            env=self.environment(service),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=900,
        )

    def start(self, *services: str) -> None:
        """Start long-running services, each as a process group of its own."""
        for service in services:
            log = (self.folder / "log" / f"{service}.log").open("ab")
            self.running[service] = subprocess.Popen(
                self.command(service),
                env=self.environment(service),
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, service: str) -> None:
        """kill -9 of all that a service's container would hold."""
        process = self.running.pop(service)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        end_workers(self.root(service))

    def stop(self) -> None:
        """End everything that is still running."""
        for service in list(self.running):
            process = self.running[service]
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for service in list(self.running):
            with suppress(subprocess.TimeoutExpired):
                self.running[service].wait(10)
            if self.running[service].poll() is None:
                self.kill(service)
            else:
                self.running.pop(service)
        end_workers(self.folder)

    def log(self, service: str) -> str:
        """What a service has written so far."""
        path = self.folder / "log" / f"{service}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def await_log(self, service: str, text: str, seconds: float = 120, after: int = 0) -> None:
        """Wait until a service has written `text` (beyond its first `after` characters)."""
        wait_for(lambda: text in self.log(service)[after:], seconds, f"'{text}' from {service}")

    def await_health(self, service: str, seconds: float = 120) -> None:
        """Wait until a service's own health check succeeds."""
        test = self.file["services"][service]["healthcheck"]["test"]
        words = [self.translate(service, word) for word in test[1:]]

        def healthy() -> bool:
            environment = self.environment(service)
            done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True)
            return done.returncode == 0

        wait_for(healthy, seconds, f"the health of {service}")

    @property
    def run_folder(self) -> Path:
        """The newest run's folder."""
        return (self.folder / "volumes" / "outputs" / "latest").resolve()


def image_environment() -> dict[str, str]:
    """The ENV instructions of the Dockerfile."""
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    words = [w for line in text.splitlines() if line.startswith("ENV ") for w in shlex.split(line)]
    return dict(word.split("=", 1) for word in words if "=" in word)


def end_workers(folder: Path) -> None:
    """kill -9 of the warm workers of sites in `folder`, which outlive who started them."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if b"client_app.worker" in words and str(folder).encode() in words:
                os.kill(int(process.name), signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(condition: Any, seconds: float, what: str) -> None:
    """Return when `condition()` holds; AssertionError after so many seconds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} did not come within {seconds:.0f} s"
        time.sleep(0.3)


def brought_up(folder: Path, *sites: str, **environment: str) -> Iterator[Services]:
    """A federation of these sites, ready for a run; everything ends with the generator."""
    services = Services(folder, **environment)
    try:
        for name in ("keys", "rows"):
            done = services.once(name)
            assert done.returncode == 0, done.stderr
        services.start("superlink")
        services.await_health("superlink")
        done = services.once("admit")
        assert done.returncode == 0, done.stderr + done.stdout
        services.start("server", *sites, *(f"{site}-executor" for site in sites))
        for site in sites:
            services.await_health(site)
        yield services
    finally:
        services.stop()


# A run of seconds of computing; the rest of its time is Flower's.
RUN = (
    "federation.minimum_nodes=2 federation.rounds=2 train.steps=2 train.batch_size=8 start.rows=16 "
    "data.test_rows=8 data.max_new_tokens=4 device=cpu"
)
FED_SB = f"strategy=fed_sb adapter=lora_sb adapter.rank=4 {RUN}"
FEDEX_LORA = f"strategy=fedex_lora adapter=lora adapter.rank=2 {RUN}"


def simulated(services: Services, overrides: str, folder: Path, script: Any = None) -> Path:
    """The run folder of the same run in one process, for the same sites and their rows."""
    sites = sorted(name for name in services.running if name.endswith("-executor"))
    configs: dict[int, dict[str, str | int]] = {}
    for node, executor in enumerate(sites, start=1):
        rows = services.root(executor) / "data" / "rows.jsonl"
        configs[node] = {"name": executor.removesuffix("-executor"), "data": str(rows)}
    words = [*overrides.split(), f"outputs={folder}"]
    run(compose(words, ROOT / "conf"), LocalGrid(len(sites), configs, script), "simulated")
    return (folder / "latest").resolve()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run's result, by file and name."""
    files = sorted([*folder.glob("adapter/*.safetensors"), *folder.glob("lora/*.safetensors")])
    return {f"{f.parent.name}/{f.name}/{k}": v for f in files for k, v in load_file(f).items()}


def assert_close(one: Path, other: Path, atol: float = 1e-7) -> None:
    """The same tensors within float32's tolerance."""
    first, second = tensors(one), tensors(other)
    assert first
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-5, atol=atol, msg=name)
    equal = sum(torch.equal(tensor, second[name]) for name, tensor in first.items())
    print(f"{equal} of {len(first)} tensors are bit-equal")
