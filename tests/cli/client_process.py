"""One client's work in a process of its own, which prints the most memory that it ever held.

python client_process.py <conf> <overrides …>: load the rows and the model, make the sketch that the
adapter's start may need, train a few steps. Not by getrusage: its peak also counts the process
that started this one.
"""

import sys
from pathlib import Path

import client_app.handlers  # noqa: F401 - what a client's process imports
from fedtuners.adapters import sketch_range
from fedtuners.config import compose
from fedtuners.tasks import batches, load, partition
from fedtuners.training import train
from fedtuners.tuned import TunedModel
from strategies.base import strategy_class


def main(conf: Path, overrides: list[str]) -> None:
    """Work as a client does, and print the peak in bytes."""
    config = compose(overrides, conf)
    rows = load(config.data, config.seed)
    tuned = TunedModel(config, strategy_class(config).only_linear_factor)
    own = partition(rows.train, config.partition, config.federation.clients, 0)
    encoded = tuned.task.encode(own, tuned.tokenizer)
    if tuned.adapter.needs_estimate:
        width = max(tuned.adapter.module_ranks()) + config.start.oversampling
        drawn = tuned.start_batches(encoded, client=0)
        sketch_range(tuned.model, drawn, tuned.summed_loss, list(tuned.shapes), width, config.seed)
    drawn = batches(encoded, tuned.pad, config.train.batch_size, config.train.steps, (0, 1, 0))
    train(tuned.model, tuned.task, drawn, config.train)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(1024 * int(status.partition("VmHWM:")[2].split()[0]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
