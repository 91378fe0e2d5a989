"""Health checks of the services: exit code 0 when well, and else one sentence.

python docker/health.py tls control:8000 ca.crt   # does it answer over TLS?
python docker/health.py runs site                # does a run fail to come to run?
python docker/health.py port runtime-a:9094      # does the SuperNode serve its executor?
"""

import json
import socket
import ssl
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime

PATIENCE = 180  # seconds until a run must be running: an executor asks for work every few


def main(kind: str, target: str, ca: str = "") -> None:
    """Check one thing; raises or exits when it is not well."""
    if kind == "tls":
        context = ssl.create_default_context(cafile=ca)
        urllib.request.urlopen(f"https://{target}/health", timeout=5, context=context).close()
    elif kind == "port":
        host, _, port = target.rpartition(":")
        socket.create_connection((host, int(port)), timeout=5).close()
    else:
        done = subprocess.run(
            ["flwr", "ls", target, "--format", "json"], capture_output=True, text=True, check=True
        )
        if stuck := waiting(json.loads(done.stdout)["runs"], datetime.now(UTC)):
            sys.exit(f"runs not running after {PATIENCE} s: {', '.join(stuck)}")


def waiting(runs: list[dict[str, str]], now: datetime) -> list[str]:
    """The ids of the runs that nobody took up, or whose ServerApp never came to run, in time."""
    return [
        str(run["run-id"])
        for run in runs
        if run["status"] in ("pending", "starting")
        and (now - datetime.fromisoformat(run["pending-at"])).total_seconds() > PATIENCE
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
