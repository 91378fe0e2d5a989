"""How a client answers: hello, a sketch of its update estimate, a round of training.

A client keeps nothing in memory that a round needs: everything arrives with the request or lies in
its store. The loaded model is a cache, one per process.
"""

import hashlib
import traceback
from functools import lru_cache
from logging import getLogger
from pathlib import Path

from flwr.app import Context, Message

from client_app.site import Site, SiteError, read_site
from client_app.store import Store
from fedtuners.adapters import sketch_core, sketch_range
from fedtuners.config import Config, ConfigError, from_json, to_json
from fedtuners.tasks import DataError, Encoded, ModelError, Splits, batches, load, partition
from fedtuners.training import train
from fedtuners.tuned import TunedModel
from strategies.base import strategy_class, wire_dtype
from strategies.messages import (
    FAILED,
    HELLO,
    MISSING,
    SKETCH,
    ForeignMessageError,
    Reply,
    Request,
    read_request,
)
from strategies.packing import manifest, pack, unpack

log = getLogger("flwr")

# Errors whose sentences are written to hold none of the site's rows.
SPEAKABLE = (SiteError, ConfigError, ForeignMessageError, DataError, ModelError)


def answer(message: Message, context: Context) -> Message:
    """Answer one message; a failure becomes a sentence that carries none of the site's data."""
    client, round_ = -1, 0
    try:
        request = read_request(message.content)
        client, round_ = request.client, request.round
        reply = Client(request, read_site(context)).answer(message.metadata.message_type)
    except Exception as error:
        log.error("%s", traceback.format_exc())
        reply = Reply(client, round_, FAILED, error=speakable(error))
    return Message(reply.content(), reply_to=message)


def speakable(error: Exception) -> str:
    """What may be told of an error: its sentence if it is ours, else its kind and place."""
    if isinstance(error, SPEAKABLE):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"{type(error).__name__} at {place}; its text stays in this site's log"


class Client:
    """One client while it answers one request."""

    def __init__(self, request: Request, site: Site) -> None:
        self.request, self.site = request, site
        folder = site.folder / _safe(request.run) / f"client-{request.client}"
        self.store = Store(folder)
        for digest, piece in request.attached.items():
            self.store.put(digest, piece)

    def answer(self, kind: str) -> Reply:
        """The reply to a message of this kind, or the pieces that are missing for it."""
        text = self.store.text(self.request.config)
        missing = [] if text else [self.request.config]
        missing += self.store.missing(self.request.pieces)
        if text is None or missing:
            return self._reply(status=MISSING, missing=missing)
        config = self.site.apply(from_json(text))
        if kind == HELLO:
            return self._hello(config)
        return self._sketch(config) if kind == SKETCH else self._train(config)

    def _hello(self, config: Config) -> Reply:
        """Say who this is, having looked that its data can be read."""
        rows = len(splits(config).train)
        own = bool(self.site.data)
        extra = {
            "name": self.site.name,
            "own_data": own,
            "partition": self.site.partition_id,
            "examples": rows if own else 0,
        }
        return self._reply(extra=extra)

    def _train(self, config: Config) -> Reply:
        """Install what came, train for one round, return what trains."""
        tuned = tuned_model(config)
        arrays, round_ = self.request.arrays, self.request.round
        if arrays is None:
            raise ValueError("a training request without tensors")
        pieces, damaged = self.store.read(self.request.pieces)
        if damaged:
            return self._reply(status=MISSING, missing=damaged)
        own, dtype = tuned.state(), wire_dtype(config.federation)
        tuned.install(unpack(arrays, manifest(own, dtype)), pieces)
        encoded = self._rows(config, tuned)
        key = (config.seed, round_, self.request.client)
        drawn = batches(encoded, tuned.pad, config.train.batch_size, config.train.steps, key)
        metrics = train(tuned.model, tuned.task, drawn, config.train)
        metrics["num-examples"] = len(encoded)
        return self._reply(arrays=pack(tuned.state(), dtype), metrics=metrics)

    def _sketch(self, config: Config) -> Reply:
        """One of the two sketches of this client's mean gradient at the base model."""
        tuned = tuned_model(config)
        tuned.uninstall()
        encoded = self._rows(config, tuned)
        drawn = tuned.start_batches(encoded, self.request.client)
        if self.request.pieces:
            pieces, damaged = self.store.read(self.request.pieces)
            if damaged:
                return self._reply(status=MISSING, missing=damaged)
            (bases,) = pieces.values()
            sums = sketch_core(tuned.model, drawn, tuned.summed_loss, bases)
        else:
            width = int(self.request.extra["width"])
            names = list(tuned.shapes)
            sums = sketch_range(tuned.model, drawn, tuned.summed_loss, names, width, config.seed)
        examples = sum(len(batch) for batch in drawn)
        state = {name: value.cpu() / examples for name, value in sums.items()}
        return self._reply(arrays=pack(state), metrics={"num-examples": len(encoded)})

    def _rows(self, config: Config, tuned: TunedModel) -> Encoded:
        """This client's training rows, tokenised."""
        rows = splits(config).train
        if not self.site.data:
            rows = partition(rows, config.partition, self.request.clients, self.request.client)
        return tuned.task.encode(rows, tuned.tokenizer)

    def _reply(self, **fields: object) -> Reply:
        return Reply(self.request.client, self.request.round, **fields)  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def _tuned_model(text: str, linear_only: bool) -> TunedModel:
    return TunedModel(from_json(text), linear_only)


def tuned_model(config: Config) -> TunedModel:
    """The loaded model of a configuration; once per process, for all clients and rounds."""
    return _tuned_model(to_json(config), strategy_class(config).only_linear_factor)


def splits(config: Config) -> Splits:
    """The rows that the configuration names, for this process to keep."""
    return load(config.data, config.seed)


def _safe(run: str) -> str:
    """A run's name as a folder name, whatever the server calls it."""
    return hashlib.sha256(run.encode()).hexdigest()[:16]
