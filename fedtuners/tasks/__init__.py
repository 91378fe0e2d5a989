"""Tasks: where rows come from, who gets which, and how they become batches, losses and scores."""

from fedtuners.tasks.batches import Batch, Encoded, batches, collate, steps_per_epoch
from fedtuners.tasks.config import DataConfig, ModelConfig, ModelError, PartitionConfig
from fedtuners.tasks.metrics import Metric
from fedtuners.tasks.models import model_path
from fedtuners.tasks.partition import PartitionError, describe, partition, partitions
from fedtuners.tasks.readers import DataError
from fedtuners.tasks.sources import Splits, load, load_own, own_rows, untouched
from fedtuners.tasks.task import (
    CausalLm,
    Classification,
    Task,
    evaluate,
    loss,
    losses,
    make_task,
)

__all__ = [
    "Batch",
    "CausalLm",
    "Classification",
    "DataConfig",
    "DataError",
    "Encoded",
    "Metric",
    "ModelConfig",
    "ModelError",
    "PartitionConfig",
    "PartitionError",
    "Splits",
    "Task",
    "batches",
    "collate",
    "describe",
    "evaluate",
    "load",
    "load_own",
    "loss",
    "losses",
    "make_task",
    "model_path",
    "own_rows",
    "partition",
    "partitions",
    "steps_per_epoch",
    "untouched",
]
