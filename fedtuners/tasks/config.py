"""What a model, a data set and its split over clients are called in the configuration.

Plain dataclasses: OmegaConf takes them as the schema, and the values that types cannot check are
checked on construction, with one sentence that names the key and the choices.
"""

from dataclasses import dataclass, field

DTYPES = ("float32", "bfloat16", "float16")
QUANTISATIONS = ("null", "int8", "nf4")
TASKS = ("causal_lm", "classification")
METRICS = {
    "causal_lm": ("exact_match", "gsm8k", "math", "choice", "loss", "perplexity"),
    "classification": ("accuracy", "matthews", "loss"),
}
PARTITIONS = ("iid", "dirichlet", "natural", "size", "pathological")
SPLIT_BY_COLUMN = ("dirichlet", "natural", "pathological")


class ModelError(ValueError):
    """A base model that cannot be used; its one sentence names it and the fix."""


@dataclass
class ModelConfig:
    """The frozen base model."""

    name: str = "demo"  # "demo" (ships with the project), a hub name, or a local folder
    dtype: str = "float32"  # float32 | bfloat16 | float16
    revision: str | None = None  # commit, tag or branch on the hub; None: the default branch
    quantization: str | None = None  # int8 | nf4: weights in 8 or 4 bits (needs fedtuners[cuda])

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("model.name is empty: give a hub name or a folder, as model=org/name")
        one_of("model.dtype", self.dtype, DTYPES)
        one_of("model.quantization", self.quantization or "null", QUANTISATIONS)


@dataclass
class DataConfig:
    """Where rows come from, how a row becomes an example, and what is measured.

    A template names columns in braces, as in ``"{question}\\n"``; a brace of its own is doubled.
    """

    source: str = "demo"  # "demo", a hub name, or a local file or folder with train and test files
    subset: str | None = None  # a hub data set's configuration
    train_split: str = "train"
    test_split: str = "test"
    test_source: str | None = None  # file, folder or hub name of the test rows, where it is another
    test_subset: str | None = None  # and its configuration on the hub
    rename: dict[str, str] = field(default_factory=dict)  # columns, where a source's are others
    holdout: float = 0.1  # test share of a single local file that has no test_source
    train_rows: int | None = None  # at most so many rows, drawn by the seed; None: all
    test_rows: int | None = None

    task: str = "causal_lm"  # causal_lm | classification
    metric: str | None = None  # None: exact_match or accuracy
    group: str | None = None  # the column by which partition=dirichlet and its like split
    max_length: int = 128  # tokens of one example; a prompt gives way before its response does

    # causal_lm
    prompt: str = "{instruction}\n"
    prompt_with_input: str = "{instruction}\n{input}\n"  # where a row's `input` is not empty
    response: str = "{output}"
    reference: str | None = None  # what a prediction is compared with; None: the response
    chat: bool = False  # render by the tokeniser's chat template
    messages: str | None = None  # column of chat turns; replaces prompt and response
    max_new_tokens: int = 64
    choice: str = "answer"  # the column that metric=choice fills with each candidate
    choices: list[str] = field(default_factory=list)  # empty: the prompt's "Answer format:" line

    # classification
    text: list[str] = field(default_factory=lambda: ["text"])  # one column, or the two of a pair
    label: str = "label"
    labels: list[str] = field(default_factory=list)  # names in order; empty: as found in the rows

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("data.source is empty: give a file or a hub name, as data=rows.jsonl")
        one_of("data.task", self.task, TASKS)
        if self.metric is not None:
            one_of(f"data.metric (task={self.task})", self.metric, METRICS[self.task])
        if self.messages is not None and not self.chat:
            raise ValueError("data.messages needs data.chat=true: turns need a chat template")
        if self.metric == "choice" and f"{{{self.choice}}}" not in self.response:
            raise ValueError(
                f"data.metric=choice compares responses by {{{self.choice}}}, which data.response "
                "does not contain; write it in, or set data.choice to the column that is there"
            )
        if not 1 <= len(self.text) <= 2:
            raise ValueError(f"data.text={self.text} must name one column, or the two of a pair")
        if not 0 < self.holdout < 1:
            raise ValueError(f"data.holdout={self.holdout} must lie strictly between 0 and 1")
        for key in ("train_rows", "test_rows", "max_length", "max_new_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"data.{key}={value} must be at least 1")

    @property
    def measured(self) -> str:
        """The metric in force: the one set, or the task's own."""
        return self.metric or METRICS[self.task][0]

    @property
    def prompts_with_input(self) -> bool:
        """Whether a row's `input` changes its prompt: not where `prompt` alone has been set."""
        own = self.prompt != DataConfig.prompt
        return not own or self.prompt_with_input != DataConfig.prompt_with_input


@dataclass
class PartitionConfig:
    """How the training rows are dealt to the clients."""

    kind: str = "iid"  # iid | dirichlet | natural | size | pathological
    column: str | None = None  # what dirichlet, natural and pathological split by
    alpha: float = 0.5  # dirichlet: small is skewed, large is even
    minimum_rows: int = 1  # dirichlet: redraw until every client has so many
    skew: float = 1.0  # size: client i gets a share ∝ (i + 1)^skew; 0 is even
    sizes: list[float] = field(default_factory=list)  # size: the shares themselves
    classes: int = 2  # pathological: distinct values of the column per client
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("partition.kind", self.kind, PARTITIONS)
        if self.kind in SPLIT_BY_COLUMN and self.column is None:
            raise ValueError(
                f"partition.kind={self.kind} needs a column to split by: set data.group, or use "
                "partition=iid"
            )
        if self.alpha <= 0:
            raise ValueError(f"partition.alpha={self.alpha} must be above 0")
        if any(size <= 0 for size in self.sizes):
            raise ValueError(f"partition.sizes={self.sizes} must all be above 0")


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError naming the valid choices unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"{key}={value} is not known; choose from {', '.join(choices)}")
