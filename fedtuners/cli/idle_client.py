"""What a client's process takes before its own model and rows: interpreter, libraries, their pages.

Run as a program, this is such a process: it imports what a client imports, trains the embedded
model on one row, and prints the most memory that it held. Not by getrusage, whose peak also counts
the process that started this one.
"""

import os
import subprocess
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")  # Linux alone says it


class IdleClient:
    """Such a process, which works while this one does something else."""

    def __init__(self, conf: Path) -> None:
        own = os.environ | {"PYTHONPATH": str(conf.parent), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(conf)],
            env=own,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def memory(self) -> int | None:
        """The peak of its resident memory in bytes; None where it cannot be had."""
        said, _ = self.process.communicate()
        return int(said.splitlines()[-1]) if self.process.returncode == 0 else None


def main(conf: Path) -> None:
    """Be the process."""
    import client_app.handlers  # noqa: F401
    from fedtuners.config import compose
    from fedtuners.tasks import batches, load, partition
    from fedtuners.training import train
    from fedtuners.tuned import TunedModel

    chosen = ["strategy=fedavg_lora", "adapter=lora", "data.train_rows=16", "partition=iid"]
    config = compose([*chosen, "train.steps=1", "device=cpu"], conf)
    tuned = TunedModel(config)
    rows = partition(load(config.data).train, config.partition, clients=4, client=0)
    encoded = tuned.task.encode(rows, tuned.tokenizer)
    train(tuned.model, tuned.task, batches(encoded, tuned.pad, 1, 1, (0,)), config.train)
    print(1024 * int(STATUS.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
