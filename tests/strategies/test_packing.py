"""A packed state comes back bit for bit, costs little more than its numbers, and fails clearly."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from strategies.algebra import State
from strategies.packing import (
    HEADER_BYTES,
    content_hash,
    manifest,
    pack,
    payload_bytes,
    unpack,
)

few = settings(max_examples=25, deadline=None, derandomize=True)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]


@st.composite
def any_state(draw: st.DrawFn) -> State:
    shapes = st.lists(st.integers(0, 4), max_size=3)
    specs = st.dictionaries(st.text(max_size=8), st.tuples(shapes, st.sampled_from(DTYPES)))
    return {
        name: bits(shape, dtype, i) for i, (name, (shape, dtype)) in enumerate(draw(specs).items())
    }


def bits(shape: list[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Random bit patterns, NaN payloads and subnormals among them."""
    numbers = torch.randint(
        0, 256, (math.prod(shape), dtype.itemsize), generator=torch.Generator().manual_seed(seed)
    ).to(torch.uint8)
    if dtype == torch.bool:
        return (numbers % 2).bool().view(shape)
    return numbers.reshape(-1).view(dtype).view(shape)


def identical(first: State, second: State) -> bool:
    """The same names, shapes, dtypes and bits, whatever the order."""
    return content_hash(first) == content_hash(second) and all(
        raw(first[name]) == raw(second[name]) for name in first
    )


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.clone().untyped_storage().tolist())


def small_state() -> State:
    return {
        "q.lora_B": torch.arange(6.0).view(3, 2),
        "k.lora_A": torch.tensor([1.0, -2.0]),
        "head": torch.tensor([0.5, 1.5, -0.25], dtype=torch.bfloat16),
    }


@given(any_state())
@few
def test_a_state_comes_back_bit_for_bit(state: State) -> None:
    record = pack(state)

    assert identical(unpack(record, manifest(state)), state)


def test_a_state_survives_the_objects_of_a_message() -> None:
    state = small_state()
    record = pack(state)

    arrays: dict[str, Any] = {
        array.object_id: Array.inflate(array.deflate(), array.children) for array in record.values()
    }
    received = ArrayRecord.inflate(record.deflate(), arrays)

    assert identical(unpack(received, manifest(state)), state)


def test_tensors_lie_end_to_end_in_the_order_of_their_names() -> None:
    state = small_state()

    record = pack(state)

    assert list(record) == ["bfloat16", "float32"]
    assert record["float32"].numpy().tolist() == [1, -2, 0, 1, 2, 3, 4, 5]
    assert record["bfloat16"].numpy().dtype == np.uint16


def test_packing_does_not_depend_on_the_order_of_insertion() -> None:
    state = small_state()
    turned = dict(reversed(state.items()))

    assert manifest(turned) == manifest(state)
    assert content_hash(turned) == content_hash(state)
    assert pack(turned)["float32"].data == pack(state)["float32"].data


def test_views_and_parameters_can_be_packed() -> None:
    state = {"x": torch.nn.Parameter(torch.randn(4, 6)).T[::2]}

    restored = unpack(pack(state), manifest(state))

    assert torch.equal(restored["x"], state["x"])
    assert not restored["x"].requires_grad


def test_empty_state() -> None:
    record = pack({})

    assert payload_bytes(record) == 0
    assert unpack(record, manifest({})) == {}


def test_unpacked_tensors_can_be_written_to_without_touching_the_record() -> None:
    state = small_state()
    record = pack(state)

    unpack(record, manifest(state))["k.lora_A"].zero_()

    assert identical(unpack(record, manifest(state)), state)


# --- cost on the wire ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tensors", [1, 448])
def test_a_large_state_costs_at_most_a_hundredth_more_than_its_numbers(
    dtype: torch.dtype, tensors: int
) -> None:
    size = math.ceil(100_000 / dtype.itemsize / tensors)
    state = {f"layers.{i}.lora_A": torch.randn(size).to(dtype) for i in range(tensors)}

    own = sum(tensor.nbytes for tensor in state.values())

    assert own >= 100_000
    assert payload_bytes(pack(state)) <= 1.01 * own


@pytest.mark.parametrize("size", [0, 1, 100, 10_000])
def test_a_small_state_costs_its_numbers_and_one_header_a_dtype(size: int) -> None:
    state = {"a": torch.zeros(size), "b": torch.zeros(size), "c": torch.zeros(size).bfloat16()}

    assert payload_bytes(pack(state)) == 10 * size + 2 * HEADER_BYTES


# --- bfloat16 on the wire --------------------------------------------------------------------


def test_bfloat16_on_the_wire_halves_float32_and_rounds_to_nearest() -> None:
    state = {**small_state(), "v.lora_A": torch.randn(1000), "exact": torch.randn(3).double()}

    record = pack(state, wire_dtype=torch.bfloat16)
    restored = unpack(record, manifest(state, wire_dtype=torch.bfloat16))

    assert list(record) == ["bfloat16", "float64"]
    assert len(record["bfloat16"].data) == HEADER_BYTES + 2 * (6 + 2 + 3 + 1000)
    assert {n: t.dtype for n, t in restored.items()} == {n: t.dtype for n, t in state.items()}
    assert torch.equal(restored["exact"], state["exact"])
    assert torch.equal(restored["head"], state["head"])
    error = (restored["v.lora_A"] - state["v.lora_A"]).abs()
    assert bool((error <= 2**-8 * state["v.lora_A"].abs()).all())
    assert bool((error > 2**-11 * state["v.lora_A"].abs()).any())


def test_ties_round_to_even() -> None:
    state = {"x": torch.tensor([1 + 2**-8, 1 + 3 * 2**-8])}

    restored = unpack(pack(state, torch.bfloat16), manifest(state, torch.bfloat16))

    assert restored["x"].tolist() == [1.0, 1 + 2**-6]


def test_another_wire_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"wire dtype must be None or torch.bfloat16"):
        pack({}, wire_dtype=torch.float16)


# --- identity of the content -----------------------------------------------------------------


def test_hash_sees_names_shapes_dtypes_and_bits() -> None:
    state = {"a": torch.zeros(2, 3)}
    others: list[State] = [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": -torch.zeros(2, 3)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(0)},
        {},
    ]

    hashes = {content_hash(other) for other in [state, *others]}

    assert len(hashes) == 1 + len(others)
    assert content_hash({"a": torch.zeros(3, 2).T}) == content_hash(state)


def test_manifest_is_compact_json() -> None:
    assert json.loads(manifest(small_state(), torch.bfloat16)) == {
        "wire": "bfloat16",
        "tensors": [
            ["head", [3], "bfloat16"],
            ["k.lora_A", [2], "float32"],
            ["q.lora_B", [3, 2], "float32"],
        ],
    }
    assert manifest({}) == '{"wire":null,"tensors":[]}'


# --- what is wrong, in one sentence ----------------------------------------------------------


def record_with(**arrays: np.ndarray) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (record_with(), "array 'float32' is missing: the manifest expects 3 numbers"),
        (
            record_with(float32=np.zeros(2, np.float32)),
            "array 'float32' holds 2 numbers, but the manifest expects 3",
        ),
        (
            record_with(float32=np.zeros(4, np.float32)),
            "array 'float32' holds 4 numbers, but the manifest expects 3",
        ),
        (
            record_with(float32=np.zeros(3, np.float32), float64=np.zeros(1)),
            "array 'float64' is unexpected",
        ),
        (record_with(float32=np.zeros(3)), "array 'float32' is float64 in 1 dimensions"),
        (record_with(float32=np.zeros((3, 1), np.float32)), "in 2 dimensions instead of float32"),
        (record_with(float32=np.zeros(3, ">f4")), "array 'float32' is >f4"),
        (
            ArrayRecord({"float32": Array("float32", (3,), "numpy.ndarray", b"\x93NUMPY\x01")}),
            "array 'float32' cannot be read",
        ),
        (
            ArrayRecord({"float32": Array("float32", (3,), "pickle", b"cos\nsystem\n")}),
            "array 'float32' cannot be read",
        ),
    ],
)
def test_a_record_that_does_not_fit_is_refused(record: ArrayRecord, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack(record, manifest({"x": torch.zeros(3)}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"wire":null}',
        '{"wire":null,"tensors":[["x",3,"float32"]]}',
        '{"wire":null,"tensors":[["x",[1.5],"float32"]]}',
        '{"wire":null,"tensors":[["x",[-1],"float32"]]}',
        '{"wire":null,"tensors":[["x",[1],"object"]]}',
        '{"wire":"int9","tensors":[["x",[1],"float32"]]}',
        '{"wire":null,"tensors":[["x",[1],"float32"],["x",[1],"float32"]]}',
    ],
)
def test_a_malformed_manifest_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="manifest"):
        unpack(ArrayRecord(), text)


def test_a_dtype_that_cannot_be_packed_is_named() -> None:
    with pytest.raises(ValueError, match=r"tensor 'x' is torch.complex64, which cannot be packed"):
        pack({"x": torch.zeros(2, dtype=torch.complex64)})
