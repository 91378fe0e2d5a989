"""A named state as one flat array per dtype, and back.

Every array of a message is an object that each hop stores and fetches on its own, so hundreds of
small tensors cost far more than their bytes. A state therefore travels as one 1-D array for each
dtype, the tensors laid end to end in the order of their names; a manifest of names, shapes and
dtypes says where each begins. Beside the numbers an array carries `HEADER_BYTES` of its format.

bfloat16, which NumPy lacks, travels as its bit pattern in uint16. Averaging such an array as it
is would be meaningless: unpack it first.
"""

import hashlib
import json
from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from strategies.algebra import State

HEADER_BYTES = 128
"""What NumPy's format puts before the numbers of a 1-D array."""

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.uint8, torch.bool),
    )
}


class _Entry(NamedTuple):
    """One tensor of a manifest: how it is, and as which dtype it travels."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    wire: str


def manifest(state: State, wire_dtype: torch.dtype | None = None) -> str:
    """Return names, shapes and dtypes as compact JSON, sorted by name.

    `wire_dtype` is the one that the state is packed with.

    Raises
    ------
    ValueError
        If a tensor's dtype or the wire dtype is not one that can be packed.
    """
    if wire_dtype not in (None, torch.bfloat16):
        raise ValueError(f"the wire dtype must be None or torch.bfloat16, but is {wire_dtype}.")
    tensors = [
        [name, list(tensor.shape), _dtype_name(name, tensor)]
        for name, tensor in sorted(state.items())
    ]
    wire = None if wire_dtype is None else "bfloat16"
    return json.dumps({"wire": wire, "tensors": tensors}, separators=(",", ":"))


def content_hash(state: State) -> str:
    """Return the SHA-256, in hex, of the names, shapes, dtypes and bytes of a state."""
    digest = hashlib.sha256(manifest(state).encode())
    for _, tensor in sorted(state.items()):
        digest.update(np.ascontiguousarray(_bits(_flat(tensor)).numpy()).data)
    return digest.hexdigest()


def pack(state: State, wire_dtype: torch.dtype | None = None) -> ArrayRecord:
    """Return the state as a record of flat arrays, keyed by dtype: "float32", "bfloat16", ….

    Parameters
    ----------
    state : State
        The tensors, which are not changed.
    wire_dtype : torch.dtype | None
        torch.bfloat16 halves the bytes of float32 tensors by rounding to the nearest bfloat16,
        ties to even: a relative error of at most 2⁻⁸ for normal numbers. None, the default, is
        exact, bit for bit; other dtypes are exact in either case.

    Raises
    ------
    ValueError
        If a tensor's dtype or the wire dtype is not one that can be packed.
    """
    record = ArrayRecord()
    for wire, entries in _by_wire(_parse(manifest(state, wire_dtype))).items():
        flat = torch.cat([_flat(state[entry.name]).to(_DTYPES[wire]) for entry in entries])
        record[wire] = Array(_bits(flat).numpy())
    return record


def unpack(record: ArrayRecord, manifest: str) -> State:
    """Return the state that `manifest` describes, in its order, from the arrays of `pack`.

    The tensors are views of one buffer per dtype, save where the wire dtype is undone: clone one
    that is to outlive the others.

    Raises
    ------
    ValueError
        If an array is missing, unexpected, of the wrong length or unreadable, or if the manifest
        is not one that `manifest` writes.
    """
    entries = _parse(manifest)
    groups = _by_wire(entries)
    for wire in sorted(record.keys() - groups.keys()):
        raise ValueError(f"array {wire!r} is unexpected: the manifest has no tensor that uses it.")
    views: State = {}
    for wire, group in groups.items():
        sizes = [prod(entry.shape) for entry in group]
        flat = _read(record, wire, sum(sizes))
        for entry, view in zip(group, flat.split(sizes), strict=True):
            views[entry.name] = view.view(entry.shape).to(_DTYPES[entry.dtype])
    return {entry.name: views[entry.name] for entry in entries}


def payload_bytes(record: ArrayRecord) -> int:
    """Return the bytes that the arrays of a record take on the wire, `HEADER_BYTES` included."""
    return sum(len(array.data) for array in record.values())


def _parse(manifest: str) -> list[_Entry]:
    try:
        content = json.loads(manifest)
        entries = [
            _Entry(str(name), torch.Size(shape), dtype, _wire(dtype, content["wire"]))
            for name, shape, dtype in content["tensors"]
        ]
        unknown = {name for entry in entries for name in entry[2:]} - _DTYPES.keys()
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"this is no manifest of a packed state: {error!r}.") from error
    if unknown:
        raise ValueError(f"the manifest has unknown dtypes: {', '.join(map(str, unknown))}.")
    if len({entry.name for entry in entries}) < len(entries):
        raise ValueError("the manifest has a name twice.")
    if any(size < 0 for entry in entries for size in entry.shape):
        raise ValueError("the manifest has a negative size.")
    return entries


def _wire(dtype: str, wire: str | None) -> str:
    return wire if wire is not None and dtype == "float32" else dtype


def _by_wire(entries: list[_Entry]) -> Mapping[str, list[_Entry]]:
    return {
        wire: [entry for entry in entries if entry.wire == wire]
        for wire in sorted({entry.wire for entry in entries})
    }


def _read(record: ArrayRecord, wire: str, size: int) -> Tensor:
    if wire not in record:
        raise ValueError(f"array {wire!r} is missing: the manifest expects {size} numbers in it.")
    try:
        flat = np.asarray(record[wire].numpy())
    except Exception as error:  # whatever a peer's bytes may set off is the same to the caller
        raise ValueError(f"array {wire!r} cannot be read: {error}.") from error
    carrier = _bits(torch.empty(0, dtype=_DTYPES[wire])).numpy().dtype
    if flat.dtype != carrier or flat.ndim != 1:
        raise ValueError(
            f"array {wire!r} is {flat.dtype} in {flat.ndim} dimensions instead of {carrier} in 1."
        )
    if flat.size != size:
        raise ValueError(
            f"array {wire!r} holds {flat.size} numbers, but the manifest expects {size}."
        )
    return torch.from_numpy(flat).view(_DTYPES[wire])


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().reshape(-1)


def _bits(flat: Tensor) -> Tensor:
    return flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat


def _dtype_name(name: str, tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ValueError(
            f"tensor {name!r} is {tensor.dtype}, which cannot be packed: "
            f"convert it to one of {', '.join(_DTYPES)}."
        )
    return dtype
