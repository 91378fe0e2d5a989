"""The ClientApp that Flower loads: questions that client_app.worker has answered.

In a simulation Ray unpickles this app in workers that look for modules in the folder where the
SuperLink was started, before the bundle's: there another project's `client_app` may lie. So the
function below travels by value (which pickling does for what belongs to `__main__`), brings the
bundle's folder along, and imports from there and nowhere else.
"""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

# As strategies.messages and strategies.secure call them, which would bring torch along.
QUESTIONS = ("hello", "sketch", "secagg_keys", "secagg_shares", "secagg_confirm", "secagg_unmask")
BUNDLE = str(Path(__file__).resolve().parent.parent)


def _answer(bundle: str) -> Callable[[Message, Context], Message]:
    def answer(message: Message, context: Context) -> Message:
        import importlib
        import os
        import sys

        if sys.path[0] != bundle:
            sys.path.insert(0, bundle)
        worker = importlib.import_module("client_app.worker")
        # The path that led there may hold links; the bundle's does not.
        if not os.path.realpath(str(worker.__file__)).startswith(bundle):
            raise ImportError(f"client_app was imported from {worker.__file__}, not {bundle}")
        reply: Message = worker.answer(message, context)
        return reply

    answer.__module__ = "__main__"
    return answer


app = ClientApp()
app.train()(_answer(BUNDLE))
for question in QUESTIONS:
    app.query(question)(_answer(BUNDLE))
