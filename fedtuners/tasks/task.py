"""The two tasks behind one seam: rows to examples, to losses, to predictions, to a score.

`make_task` gives the task of a configuration; everything that trains or evaluates uses only what
`Task` names.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedtuners.tasks import encoding, formats
from fedtuners.tasks.batches import Batch, Encoded, ordered_batches
from fedtuners.tasks.config import DataConfig, ModelConfig
from fedtuners.tasks.generation import evaluating, generate, log_likelihoods
from fedtuners.tasks.losses import class_loss, sequence_loss
from fedtuners.tasks.metrics import Metric, mean_loss, score
from fedtuners.tasks.models import check_length, load_causal_lm, load_classifier

Rows = Iterable[Mapping[str, Any]]
Kind = Literal["causal_lm", "classification"]


class Task(Protocol):
    """What training and evaluation must know of a task."""

    kind: ClassVar[Kind]

    @property
    def config(self) -> DataConfig:
        """How rows become examples, and what is measured."""
        ...

    def load_base(
        self, model: ModelConfig, device: str | torch.device = "cpu", seed: int = 0
    ) -> tuple[PreTrainedModel, Any]:
        """(model, tokeniser): evaluation mode, nothing trainable, padding token set."""
        ...

    def encode(self, rows: Rows, tokenizer: Any) -> Encoded:
        """Rows as token ids with labels; the same rows are tokenised once per process."""
        ...

    def per_example_loss(self, model: Any, batch: Batch) -> Tensor:
        """Loss of each example, (batch,), with gradients; independent of the batch's others."""
        ...

    def predictions(
        self, model: Any, tokenizer: Any, rows: Rows, batch_size: int = 64
    ) -> list[str]:
        """The model's answer to each row, as text; the model's mode is left as it was."""
        ...

    def references(self, rows: Rows) -> list[str]:
        """What the answers are compared with."""
        ...


@dataclass(frozen=True)
class CausalLm:
    """Answer a prompt: trained on the response's tokens, scored by greedy text or likelihood."""

    config: DataConfig
    kind: ClassVar[Kind] = "causal_lm"

    def load_base(
        self, model: ModelConfig, device: str | torch.device = "cpu", seed: int = 0
    ) -> tuple[PreTrainedModel, Any]:
        """See Task; nothing is drawn from `seed`. Raises ModelError if the context is too short."""
        loaded, tokenizer = load_causal_lm(model, device)
        generates = self.config.measured not in ("loss", "perplexity", "choice")
        new_tokens = self.config.max_new_tokens if generates else 0
        check_length(loaded, self.config.max_length + new_tokens)
        return loaded, tokenizer

    def encode(self, rows: Rows, tokenizer: Any) -> Encoded:
        """See Task; labels are -100 on the prompt."""
        examples = [formats.instruction(row, self.config) for row in rows]
        return encoding.encode_instructions(
            examples, tokenizer, self.config.max_length, self.config.chat
        )

    def per_example_loss(self, model: Any, batch: Batch) -> Tensor:
        """Mean nats per response token of each sequence, (batch,)."""
        return sequence_loss(model(**batch.inputs, use_cache=False).logits, batch.labels)

    def predictions(
        self, model: Any, tokenizer: Any, rows: Rows, batch_size: int = 64
    ) -> list[str]:
        """See Task: greedy continuations, or the likeliest candidate for metric=choice."""
        if self.config.measured == "choice":
            return self._choices(model, tokenizer, rows, batch_size)
        config = self.config
        examples = [formats.instruction(row, config) for row in rows]
        prompts = encoding.encode_prompts(examples, tokenizer, config.max_length, config.chat)
        stop = encoding.stop_ids(tokenizer, config.chat)
        ids = generate(
            model, prompts, config.max_new_tokens, stop, tokenizer.pad_token_id, batch_size
        )
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _choices(self, model: Any, tokenizer: Any, rows: Rows, batch_size: int) -> list[str]:
        asked = [(row, formats.candidates(row, self.config)) for row in rows]
        column = self.config.choice
        filled = [{**row, column: answer} for row, options in asked for answer in options]
        encoded = self.encode(filled, tokenizer)
        likelihoods = iter(log_likelihoods(model, encoded, tokenizer.pad_token_id, batch_size))
        scored = [[(next(likelihoods), answer) for answer in options] for _, options in asked]
        return [max(options, key=lambda pair: pair[0])[1] for options in scored]

    def references(self, rows: Rows) -> list[str]:
        """See Task: `data.reference` filled, else the response."""
        return [formats.reference(row, self.config) for row in rows]


@dataclass(frozen=True)
class Classification:
    """Tell which of `labels` a text, or a pair of texts, has."""

    config: DataConfig
    labels: tuple[str, ...]
    kind: ClassVar[Kind] = "classification"

    def load_base(
        self, model: ModelConfig, device: str | torch.device = "cpu", seed: int = 0
    ) -> tuple[PreTrainedModel, Any]:
        """See Task; a head that the model lacks is drawn from `seed`."""
        loaded, tokenizer = load_classifier(model, self.labels, device, seed)
        check_length(loaded, self.config.max_length)
        return loaded, tokenizer

    def encode(self, rows: Rows, tokenizer: Any) -> Encoded:
        """See Task; a label is the index of its name."""
        examples = [formats.labelled(row, self.config, self.labels) for row in rows]
        return encoding.encode_labelled(examples, tokenizer, self.config.max_length)

    def per_example_loss(self, model: Any, batch: Batch) -> Tensor:
        """Cross entropy in nats of each example, (batch,)."""
        return class_loss(model(**batch.inputs).logits, batch.labels)

    def predictions(
        self, model: Any, tokenizer: Any, rows: Rows, batch_size: int = 64
    ) -> list[str]:
        """See Task: the name of the likeliest label."""
        encoded = self.encode(rows, tokenizer)
        found = [""] * len(encoded)
        pad = tokenizer.pad_token_id
        with evaluating(model) as device:
            for group, batch in ordered_batches(encoded, pad, batch_size, device):
                indices = model(**batch.inputs).logits.argmax(dim=-1).tolist()
                for row, index in zip(group, indices, strict=True):
                    found[row] = self.labels[index]
        return found

    def references(self, rows: Rows) -> list[str]:
        """See Task: the name of the row's label."""
        return [self.labels[formats.label_index(row, self.config, self.labels)] for row in rows]


def make_task(config: DataConfig, labels: Sequence[str] = ()) -> Task:
    """The task of a configuration; `labels` are those of the loaded splits."""
    if config.task == "classification":
        return Classification(config, tuple(labels or config.labels))
    return CausalLm(config)


def loss(task: Task, model: Any, batch: Batch) -> Tensor:
    """The training loss, a scalar: the mean over examples, private or not."""
    return task.per_example_loss(model, batch).mean()


def losses(task: Task, model: Any, encoded: Encoded, pad: int, batch_size: int = 64) -> list[float]:
    """The loss of each example, without gradients, in the order of `encoded`."""
    result = [0.0] * len(encoded)
    with evaluating(model) as device:
        for rows, batch in ordered_batches(encoded, pad, batch_size, device):
            each = task.per_example_loss(model, batch).tolist()
            for row, value in zip(rows, each, strict=True):
                result[row] = value
    return result


def evaluate(task: Task, model: Any, tokenizer: Any, rows: Rows, batch_size: int = 64) -> Metric:
    """The task's metric on `rows`. Raises ValueError when there are none."""
    rows = list(rows)
    name = task.config.measured
    if name in ("loss", "perplexity"):
        encoded = task.encode(rows, tokenizer)
        each = losses(task, model, encoded, tokenizer.pad_token_id, batch_size)
        return mean_loss(each, perplexity=name == "perplexity")
    return score(name, task.predictions(model, tokenizer, rows, batch_size), task.references(rows))
