"""Give this project's virtual environment a Flower of its own; `make` runs this once.

Left to itself, `flwr run` shares one local SuperLink between all of a user's projects (whose Ray
workers may then import another project's `client_app`), and installs an app's dependencies anew
for every run. A `.pth` file in the environment sets defaults against both for every Python started
from it; a variable that the user sets wins.
"""

import site
import subprocess
import sys
import zlib
from pathlib import Path

FIRST_PORT, PORTS = 39200, 400  # two ports for each project, by its path


def defaults(project: Path) -> dict[str, str]:
    """The environment variables of a project folder."""
    port = FIRST_PORT + 2 * (zlib.crc32(str(project).encode()) % PORTS)
    return {
        "FLWR_HOME": str(project / ".flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_LOCAL_CONTROL_API_PORT": str(port + 1),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FEDTUNERS_OUTPUTS": str(project / "outputs"),
        "FEDTUNERS_STATE": str(project / "state"),
    }


def write(project: Path, packages: Path) -> Path:
    """Write the `.pth` file into an environment's site-packages."""
    path = packages / "fedtuners_flower.pth"
    programs = str(Path(sys.executable).parent)  # Flower starts its own programs by name
    path.write_text(
        "import os; "
        f"[os.environ.setdefault(*item) for item in {defaults(project)!r}.items()]; "
        f"os.environ['PATH'] = os.pathsep.join(dict.fromkeys([{programs!r}, "
        "*os.environ.get('PATH', '').split(os.pathsep)]))\n",
        encoding="utf-8",
    )
    return path


def main() -> None:
    """Prepare the environment this Python belongs to, for the project in the current folder."""
    if sys.prefix == sys.base_prefix:
        raise SystemExit("not a virtual environment: run this with the project's .venv/bin/python")
    project = Path.cwd().resolve()
    (project / ".flwr").mkdir(exist_ok=True)
    print(f"wrote {write(project, Path(site.getsitepackages()[0]))}")
    # Two cores or sixty-four: one worker a core, however many clients there are.
    flwr = str(Path(sys.executable).with_name("flwr"))
    subprocess.run(
        [
            *(flwr, "federation", "simulation-config", "@none/default"),
            *("--num-supernodes", "4", "--client-resources-num-cpus", "1"),
        ],
        cwd=project / ".flwr",
        check=True,
        stdout=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    main()
