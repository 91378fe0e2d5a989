"""A site's warm worker: one process that keeps the loaded base model between messages.

Flower starts a process for every message; in a short round most of that process's life goes into
importing torch and loading the base model. A site that sets `worker=600` keeps one process that
has done both, and hands it each message over a local socket. It is started on demand, ends after
so many seconds without a message, is replaced when the site's settings or the code change, and
outlives those that ask it. What must outlive the worker is on the site's disk, as without one.
"""

import fcntl
import hashlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from flwr.app import Context, Message

import fedtuners
from client_app.site import Site, SiteError, read_site

BUNDLE = Path(__file__).resolve().parent.parent
PATIENCE = 120.0  # seconds that a worker may take until it listens
Said = list[tuple[int, str]]  # what was logged on the way: level and text

log = logging.getLogger("flwr")


def answer(message: Message, context: Context) -> Message:
    """Answer a message in this process, or by the site's worker if the site keeps one."""
    if not context.node_config.get("worker"):
        return in_this_process(message, context)
    try:
        reply, said = Address.of(read_site(context)).ask(message, context)
    except SiteError as error:
        from client_app.handlers import refused

        return refused(message, error)
    for level, text in said:
        log.log(level, "%s", text)
    return reply


def in_this_process(message: Message, context: Context) -> Message:
    """Answer by the handlers, which bring torch along and are imported only where they work."""
    from client_app import handlers

    return handlers.answer(message, context)


@dataclass(frozen=True)
class Address:
    """Where a node's worker listens, and what it must be like."""

    path: Path  # without suffix: .sock is the socket, .owner the living worker's lock
    key: str  # settings and code: a worker that was started with others is replaced
    idle: float  # seconds
    log: Path

    @classmethod
    def of(cls, site: Site) -> "Address":
        """The address of a site's worker; SiteError when its folder belongs to somebody else."""
        # Under the temporary folder, since a socket's path may have 108 characters at most.
        folder = Path(tempfile.gettempdir()) / f"fedtuners-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise SiteError(f"{folder} must belong to this user alone: remove it, or set TMPDIR")
        state = site.folder.absolute()
        state.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(f"{state} {site.name}".encode()).hexdigest()[:16]
        key = f"{BUNDLE} {fedtuners.__version__} {sys.executable} {site}"
        clean = "".join(c if c.isalnum() else "-" for c in f"worker {site.name}".strip())
        return cls(folder / name, key, site.worker, state / f"{clean}.log")

    def ask(self, message: Message, context: Context) -> tuple[Message, Said]:
        """The worker's answer. SiteError when none can be started, or when it dies meanwhile."""
        with locked(self.path.with_suffix(".start")):
            connection = self._reached() or self._started()
        with connection:
            try:
                connection.send((message, context))
                answered: tuple[Message, Said] = connection.recv()
            except (EOFError, OSError):
                raise SiteError(
                    f"the site's worker died while it answered; {self.log.name} in the site's "
                    "state folder may say why, and the next message starts another"
                ) from None
        return answered

    def _reached(self) -> Connection | None:
        """A connection to the living worker, or None; one with another key is told to end."""
        with suppress(OSError, EOFError):
            with socket.socket(socket.AF_UNIX) as caller:
                caller.connect(str(self.path.with_suffix(".sock")))
                connection = Connection(caller.detach())
            connection.send(self.key)
            if connection.recv():
                return connection
            connection.close()
        return None

    def _started(self) -> Connection:
        """A connection to a new worker, once the one before it has ended."""
        with locked(self.path.with_suffix(".owner")), self.log.open("wb") as log_file:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "client_app.worker",
                    self.path,
                    self.key,
                    str(self.idle),
                ],
                env=os.environ | {"PYTHONPATH": search_path()},
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,  # it outlives the process that starts it
            )
        until = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < until:
            connection = self._reached()
            if connection is not None:
                return connection
            time.sleep(0.05)
        raise SiteError(f"the site's worker did not start: see {self.log.name} in its state folder")


def search_path() -> str:
    """The bundle before what was there; an empty part would be the folder it was started in."""
    return os.pathsep.join(filter(None, [str(BUNDLE), os.environ.get("PYTHONPATH")]))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that the operating system takes back when this process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def serve(path: Path, key: str, idle: float) -> None:
    """Answer one caller after another; return after `idle` seconds without, or when replaced."""
    address = path.with_suffix(".sock")
    with locked(path.with_suffix(".owner")), socket.socket(socket.AF_UNIX) as listening:
        address.unlink(missing_ok=True)
        listening.bind(str(address))
        listening.listen()
        listening.settimeout(idle)
        said = Collected()
        log.addHandler(said)
        wanted = True
        while wanted:
            try:
                accepted, _ = listening.accept()
            except TimeoutError:
                break
            with Connection(accepted.detach()) as caller, suppress(OSError, EOFError):
                wanted = serve_one(caller, key, said)
        address.unlink(missing_ok=True)


def serve_one(caller: Connection, key: str, said: "Collected") -> bool:
    """Answer one caller; False when it wants another worker. A caller may die at any point."""
    wanted = bool(caller.recv() == key)
    caller.send(wanted)
    if wanted:
        message, context = caller.recv()
        said.lines.clear()
        reply = in_this_process(message, context)
        caller.send((reply, list(said.lines)))
    return wanted


class Collected(logging.Handler):
    """What is logged while a message is answered, for the caller's log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: Said = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's level and text."""
        self.lines.append((record.levelno, record.getMessage()))


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
