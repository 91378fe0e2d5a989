"""How a client answers: hello, a sketch of its update estimate, a round of training.

A client keeps nothing in memory that a round needs: everything arrives with the request or lies in
its store. The loaded model is a cache, one per process.
"""

import hashlib
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache
from logging import getLogger
from pathlib import Path

import torch
from datasets import Dataset
from flwr.app import Context, Message

from client_app.secure import secure_client
from client_app.site import Site, SiteError, read_site
from client_app.store import Store
from fedtuners.adapters import sketch_core, sketch_range
from fedtuners.config import Config, ConfigError, from_json, to_json
from fedtuners.logs import journal, located, recorded
from fedtuners.privacy import PrivacyError, PrivateClient, forecast, units_of
from fedtuners.privacy.secagg import SecAggError
from fedtuners.tasks import (
    DataError,
    ModelError,
    PartitionError,
    batches,
    load,
    load_own,
    own_rows,
    partition,
    untouched,
)
from fedtuners.training import seeded, train
from fedtuners.tuned import TunedModel
from strategies.algebra import State
from strategies.base import strategy_class, wire_dtype
from strategies.messages import (
    FAILED,
    HELLO,
    MISSING,
    SKETCH,
    ForeignMessageError,
    Metrics,
    Reply,
    Request,
    read_request,
    text_hash,
)
from strategies.packing import manifest, pack, unpack
from strategies.secure import STAGES

log = getLogger("flwr")

# Errors whose sentences are written to hold none of the site's rows.
SPEAKABLE = (
    *(SiteError, ConfigError, ForeignMessageError),
    *(DataError, PartitionError, ModelError, PrivacyError, SecAggError),
)


def answer(message: Message, context: Context) -> Message:
    """Answer one message; a failure becomes a sentence that carries none of the site's data."""
    client, round_ = -1, 0
    with ExitStack() as opened:
        try:
            request = read_request(message.content)
            client, round_ = request.client, request.round
            site = read_site(context)
            opened.enter_context(logged(request, site))
            reply = Client(request, site).answer(message.metadata.message_type)
            journal.info("answered %s: %s", message.metadata.message_type, reply.status)
        except Exception as error:
            log.error("%s", traceback.format_exc())
            reply = Reply(client, round_, FAILED, error=speakable(error))
    return Message(reply.content(), reply_to=message)


@contextmanager
def logged(request: Request, site: Site) -> Iterator[None]:
    """Within it, what is logged also goes into the site's own file, with run, round and node."""
    site.folder.mkdir(parents=True, exist_ok=True)
    node = site.name or f"client-{request.client}"
    place = located(run=request.run, round=request.round, node=node)
    with recorded(site.folder / "log.jsonl"), place:
        yield


def refused(message: Message, error: SiteError) -> Message:
    """The reply of a site that cannot answer at all."""
    request = read_request(message.content)
    reply = Reply(request.client, request.round, FAILED, error=str(error))
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
        self.pieces, lost = self.store.read(self.request.pieces)
        if text is None or lost:
            config_too = [self.request.config] if text is None else []
            return self._reply(status=MISSING, missing=[*config_too, *lost])
        self.asked = _config(text)
        config = self.site.apply(self.asked)
        self.site.check_privacy(config)
        self.secure = secure_client(config, self.request, self.site, self.store.folder)
        if kind == HELLO:
            return self._hello(config)
        if self.secure is not None and kind in STAGES:
            return self._reply(extra=self.secure.answer(kind))
        if self.secure is not None:
            self.secure.ready(kind)
        return self._sketch(config) if kind == SKETCH else self._train(config)

    def _hello(self, config: Config) -> Reply:
        """Say who this is, having looked that its data can be read."""
        own = bool(self.site.data)
        rows = self._rows(config) if own else load(config.data, config.seed).train
        extra = {
            "name": self.site.name,
            "own_data": own,
            "partition": self.site.partition_id,
            "examples": len(rows) if own and self.secure is None else 0,
        }
        if own and config.privacy.active and self.secure is None:
            extra["privacy"] = forecast(config, [len(units_of(rows, config.privacy.unit))])
        return self._reply(extra=extra)

    def _train(self, config: Config) -> Reply:
        """Install what came, train for one round, return what trains."""
        tuned = tuned_model(config)
        arrays, round_ = self.request.arrays, self.request.round
        if arrays is None:
            raise ValueError("a training request without tensors")
        dtype = wire_dtype(config.federation)
        names = manifest(tuned.state(), dtype)
        if self.request.extra.get("manifest") != text_hash(names):
            raise ForeignMessageError(
                "the run's tensors have other names, shapes or types than this site's model gives: "
                "use the run's model, and its versions of transformers and peft"
            )
        tuned.install(unpack(arrays, names), self.pieces)
        if config.privacy.active:
            private = self._private(config, tuned)
            state, report = private.train([str(round_), *self.request.pieces])
            return self._tensors(state, {**report, "num-examples": len(private.rows)}, dtype)
        encoded = tuned.task.encode(self._rows(config), tuned.tokenizer)
        key = (config.seed, round_, self.request.client)
        settings = config.train.resolved(len(encoded))
        size, steps, grouped = settings.batch_size, settings.steps, settings.group_by_length
        drawn = batches(encoded, tuned.pad, size, steps, key, grouped)
        with seeded(key):
            metrics = train(tuned.model, tuned.task, drawn, settings)
        metrics["num-examples"] = len(encoded)
        return self._tensors(tuned.state(), metrics, dtype)

    def _sketch(self, config: Config) -> Reply:
        """One of the two sketches of this client's mean gradient at the base model."""
        tuned = tuned_model(config)
        tuned.uninstall()
        if config.privacy.active:
            return self._private_sketch(config, tuned)
        encoded = tuned.task.encode(self._rows(config), tuned.tokenizer)
        drawn = tuned.start_batches(encoded, self.request.client)
        if self.request.pieces:
            (bases,) = self.pieces.values()
            sums = sketch_core(tuned.model, drawn, tuned.summed_loss, bases)
        else:
            width = int(self.request.extra["width"])
            names = list(tuned.shapes)
            sums = sketch_range(tuned.model, drawn, tuned.summed_loss, names, width, config.seed)
        examples = sum(len(batch) for batch in drawn)
        state = {name: value.cpu() / examples for name, value in sums.items()}
        return self._tensors(state, {"num-examples": len(encoded)})

    def _private_sketch(self, config: Config, tuned: TunedModel) -> Reply:
        """The same, clipped, noised and charged to the ledger."""
        private = self._private(config, tuned)
        if self.request.pieces:
            (bases,) = self.pieces.values()
            state, report = private.sketch_core(bases, self.request.pieces)
        else:
            state, report = private.sketch_range(int(self.request.extra["width"]), [])
        return self._tensors(state, {**report, "num-examples": len(private.rows)})

    def _private(self, config: Config, tuned: TunedModel) -> PrivateClient:
        """This client's rows behind their ledger: a site's own have one budget for all runs."""
        if self.site.data:
            source, book = untouched(config.data), ""
            rows = own_rows(source, config.data, config.seed)
        else:
            source, book = self._rows(config), self.request.run
            rows = source
        folder, limit = self.site.folder, self.site.epsilon
        return PrivateClient(config, self.asked, tuned, rows, source, folder, book, limit)

    def _rows(self, config: Config) -> Dataset:
        """This client's training rows: its own, or its part of the run's."""
        if self.site.data:
            return load_own(config.data, config.seed)
        rows = load(config.data, config.seed).train
        return partition(rows, config.partition, self.request.clients, self.request.client)

    def _tensors(self, state: State, metrics: Metrics, dtype: torch.dtype | None = None) -> Reply:
        """A reply that carries tensors, and says by a hash how they are named and shaped."""
        if self.secure is not None:
            return self._reply(**self.secure.masked(state, metrics, dtype))
        about = {"manifest": text_hash(manifest(state, dtype))}
        return self._reply(arrays=pack(state, dtype), metrics=metrics, extra=about)

    def _reply(self, **fields: object) -> Reply:
        return Reply(self.request.client, self.request.round, **fields)  # type: ignore[arg-type]


@lru_cache(maxsize=8)
def _config(text: str) -> Config:
    return from_json(text)


_loaded: dict[str, TunedModel] = {}


def tuned_model(config: Config) -> TunedModel:
    """The loaded model of a configuration: one a process, for all its clients and rounds."""
    key = to_json(replace(config, data=replace(config.data, source="*")))  # whosever rows they are
    if key not in _loaded:
        _loaded.clear()  # the memory of another run's model first
        _loaded[key] = TunedModel(config, strategy_class(config).only_linear_factor)
    return _loaded[key]


def _safe(run: str) -> str:
    """A run's name as a folder name, whatever the server calls it."""
    return hashlib.sha256(run.encode()).hexdigest()[:16]
