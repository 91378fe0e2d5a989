"""The embedded demo: a tiny pretrained language model and the generator of its data."""

from pathlib import Path

from fedtuners.demo.commands import rows

MODEL_DIR = Path(__file__).parent / "model"

__all__ = ["MODEL_DIR", "rows"]
