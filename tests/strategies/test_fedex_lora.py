"""FedEx-LoRA is exact (property 1 of the method), for LoRA and ABBA, nn.Linear and Conv1D.

The reference is dense and in fp64: W0 + Σ earlier residuals + Σ p_i ΔW_i, from what the clients
really sent. The known wrong versions, a transposed residual and none at all, must fail it.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from federation import Federation, connected
from local_grid import LocalGrid, puppet, trained
from torch import Tensor
from transformers import AutoModelForCausalLM

from fedtuners.adapters import Abba, Adapter, Lora, LoraSb, by_module
from fedtuners.adapters.linear import as_stored, in_out_features
from fedtuners.adapters.residual import LEFT
from fedtuners.adapters.state import base_layer
from strategies.algebra import State
from strategies.fedex_lora import FedExLora
from strategies.messages import Request, read_request
from strategies.packing import pack

Made = Callable[..., Federation]
M, N = 10, 7
ADAPTERS: list[tuple[Adapter, dict[str, tuple[int, int]]]] = [
    (Lora(rank=2, alpha=6), {"lora_A": (2, N), "lora_B": (M, 2)}),
    (
        Abba(rank1=1, rank2=2, alpha=2.0),
        {"abba_A1": (1, N), "abba_B1": (M, 1), "abba_A2": (2, N), "abba_B2": (M, 2)},
    ),
]


# --- by puppets, in fp64 and fp32 --------------------------------------------------------------


def upload(shapes: dict[str, tuple[int, int]], round_: int, client: int, dtype: Any) -> State:
    generator = torch.Generator().manual_seed(10 * round_ + client)
    return {
        f"x.{factor}": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for factor, shape in shapes.items()
    }


def delta(adapter: Adapter, state: State) -> Tensor:
    return adapter.delta({name: t.double() for name, t in by_module(state)["x"].items()})


def residual_sum(states: list[State]) -> Tensor:
    terms = [s["x.residual_L"].double() @ s["x.residual_R"].double() for s in states]
    return torch.stack(terms).sum(0) if terms else torch.zeros(M, N, dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("examples", [(5, 5, 5), (1, 10, 100)], ids=["uniform", "unequal"])
@pytest.mark.parametrize(("adapter", "shapes"), ADAPTERS, ids=["lora", "abba"])
def test_mean_and_residuals_are_the_mean_of_products(
    adapter: Adapter, shapes: Any, examples: tuple[int, ...], dtype: Any, tolerance: float
) -> None:
    def answer(request: Request) -> Any:
        state = upload(shapes, request.round, request.client, dtype)
        return trained(request, state, examples[request.client])

    grid = LocalGrid(2, client=puppet(answer))
    strategy = connected(FedExLora(adapter), upload(shapes, 0, 0, dtype), grid)
    strategy.start(grid, strategy.packed(), 3, 5)

    shared = list(strategy.shared.values())
    uploads = [upload(shapes, 3, client, dtype) for client in range(3)]
    weights = [count / sum(examples) for count in examples]
    exact = sum(p * delta(adapter, u) for p, u in zip(weights, uploads, strict=True))
    truth = residual_sum(shared[:2]) + exact
    found = residual_sum(shared) + delta(adapter, strategy.state)
    assert len(shared) == 3
    assert relative(found, truth) < tolerance
    assert relative(residual_sum(shared[:2]) + delta(adapter, strategy.state), truth) > 0.05


def relative(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("clients", [2, 3, 4])
def test_the_residual_is_thin(clients: int) -> None:
    adapter, shapes = Lora(rank=1), {"lora_A": (1, N), "lora_B": (M, 1)}
    answer = puppet(lambda r: trained(r, upload(shapes, r.round, r.client, torch.float64)))
    grid = LocalGrid(2, client=answer)
    strategy = connected(FedExLora(adapter), upload(shapes, 0, 0, torch.float64), grid, clients)

    strategy.start(grid, strategy.packed(), 1, 5)

    (state,) = strategy.shared.values()
    assert state["x.residual_L"].shape == (M, clients - 1)
    assert state["x.residual_R"].shape == (clients - 1, N)


def test_a_truncated_residual_is_the_best_of_its_rank() -> None:
    adapter, shapes = ADAPTERS[0]
    answer = puppet(lambda r: trained(r, upload(shapes, r.round, r.client, torch.float64)))

    def residual(rank: int | None) -> Tensor:
        grid = LocalGrid(2, client=answer)
        made = FedExLora(adapter, residual_rank=rank)
        strategy = connected(made, upload(shapes, 0, 0, torch.float64), grid)
        strategy.start(grid, strategy.packed(), 1, 5)
        return residual_sum(list(strategy.shared.values()))

    sigma = torch.linalg.svdvals(residual(None))
    lost = (residual(None) - residual(1)).norm() ** 2
    torch.testing.assert_close(lost, sigma[1:].square().sum(), atol=1e-10, rtol=1e-10)


def test_a_bfloat16_wire_is_made_up_for_by_the_residual() -> None:
    adapter, shapes = ADAPTERS[0]
    answer = puppet(lambda r: rounded(r, upload(shapes, r.round, r.client, torch.float32)))
    grid = LocalGrid(2, client=answer)
    start = upload(shapes, 0, 0, torch.float32)
    strategy = connected(FedExLora(adapter), start, grid, wire_dtype="bfloat16")
    strategy.start(grid, strategy.packed(), 1, 5)

    as_sent = [
        {name: t.bfloat16().float() for name, t in upload(shapes, 1, c, torch.float32).items()}
        for c in range(3)
    ]
    truth = torch.stack([delta(adapter, state) for state in as_sent]).mean(0)
    held = {name: t.bfloat16().float() for name, t in strategy.state.items()}
    found = residual_sum(list(strategy.shared.values())) + delta(adapter, held)
    assert relative(found, truth) < 1e-5


def rounded(request: Request, state: State) -> Any:
    reply = trained(request, state)
    reply.arrays, reply.extra = pack(state, torch.bfloat16), dict(request.extra)
    return reply


# --- end to end, on real layers ----------------------------------------------------------------


def effective(made: Federation, transposed: bool = False) -> dict[str, Tensor]:
    """W0 + Σ p_i ΔW_i of round 1 for each adapted layer, as stored, in fp64.

    `transposed`: the known wrong version, which shows where a layer is square.
    """
    uploads, weights = made.uploads(1), made.weights(1)
    grouped = [by_module(_double(upload)) for upload in uploads.values()]
    found = {}
    for module in made.tuned.shapes:
        layer = base_layer(made.tuned.model, module)
        deltas = [made.strategy.adapter.delta(upload[module]) for upload in grouped]
        change = torch.stack([p * d for p, d in zip(weights, deltas, strict=True)]).sum(0)
        if transposed and change.shape[0] == change.shape[1]:
            change = change.T
        found[module] = layer.weight.detach().double() + as_stored(layer, change)
    return found


def _double(state: State) -> State:
    return {name: tensor.double() for name, tensor in state.items()}


def dense_logits(made: Federation, ids: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """A fresh fp64 base model with these weights, and no adapter."""
    model = AutoModelForCausalLM.from_pretrained(made.config.model.name).double().eval()
    for module, weight in weights.items():
        model.get_submodule(module).weight.data.copy_(weight)
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("adapter", ["lora", "abba"])
def test_the_global_model_is_w0_plus_the_mean_of_the_clients(
    federation: Made, model: str, adapter: str
) -> None:
    made = federation(
        *("strategy=fedex_lora", f"adapter={adapter}", "train.steps=4"),
        "train.learning_rate=0.05",
        model=model,
    )
    ids = torch.randint(3, 250, (4, 12), generator=torch.Generator().manual_seed(0))

    made.rounds(1)

    with torch.no_grad():
        found = made.tuned.model(input_ids=ids).logits.double()
    truth = dense_logits(made, ids, effective(made))
    scale = float((truth - dense_logits(made, ids, {})).abs().max())
    assert len(set(made.weights(1))) > 1  # the clients are unequal
    assert float((found - truth).abs().max()) < 1e-4 * scale
    wrong = dense_logits(made, ids, effective(made, transposed=True))
    assert float((wrong - truth).abs().max()) > 1e-2 * scale
    plain = _without_residual(made, ids)
    assert float((plain - truth).abs().max()) > 1e-2 * scale


def _without_residual(made: Federation, ids: Tensor) -> Tensor:
    made.tuned.install(made.strategy.state, {})
    with torch.no_grad():
        return made.tuned.model(input_ids=ids).logits.double()


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_the_residual_lies_as_its_layer_is_stored(federation: Made, model: str) -> None:
    made = federation("strategy=fedex_lora", "adapter=lora", model=model)

    made.rounds(1)

    (state,) = made.strategy.shared.values()
    for module, factors in by_module(state).items():
        n, m = in_out_features(base_layer(made.tuned.model, module))
        assert factors["residual_L"].shape[0] == m
        assert factors["residual_R"].shape[1] == n
        assert factors["residual_L"].shape[1] <= (len(made.exchange.nodes) - 1) * 2


def test_a_client_that_skipped_rounds_gets_every_residual(federation: Made) -> None:
    made = federation(
        *("strategy=fedex_lora", "adapter=lora", "federation.clients=4"),
        "federation.fraction=0.5",
    )

    made.rounds(5)

    shared = list(made.strategy.shared)
    assert len(shared) == 5
    held: dict[int, set[str]] = {client: set() for client in made.exchange.nodes}
    caught_up = 0
    for request in (read_request(message.content) for message in made.grid.sent):
        if not request.round:
            continue
        assert request.pieces == shared[: request.round - 1]
        caught_up += len(request.attached.keys() - {made.exchange.config}) > 1
        assert not held[request.client] & set(request.attached)
        held[request.client] |= set(request.attached)
        assert held[request.client] >= set(request.pieces)
    assert caught_up


def test_it_needs_each_clients_own_factors() -> None:
    assert not FedExLora.linear


def test_it_refuses_what_it_has_nothing_to_add_to() -> None:
    with pytest.raises(ValueError, match="choose strategy=fed_sb, or adapter=lora"):
        FedExLora(LoraSb(rank=2))
    with pytest.raises(ValueError, match="residual_rank=0 must be at least 1, or null"):
        FedExLora(Lora(rank=2), residual_rank=0)


@pytest.mark.parametrize(("wire", "rank"), [(None, 2 * 2), ("bfloat16", 4 * 2)])
def test_a_rounded_mean_costs_two_ranks_more(federation: Made, wire: str | None, rank: int) -> None:
    """Three clients at rank 2: (k−1)r where the mean arrives as it is, else (k+1)r, as foretold."""
    words = ("strategy=fedex_lora", "adapter=lora", "adapter.rank=2")
    made = federation(*words, f"federation.wire_dtype={wire or 'null'}")
    made.rounds(1)

    pieces = made.strategy.shared.values()
    left = {n: t.shape[1] for piece in pieces for n, t in piece.items() if n.endswith(LEFT)}
    assert set(left.values()) == {rank}
    shapes = {name.rpartition(".")[0]: (64, 64) for name in left}
    foretold = made.strategy.gains(shapes, 3)
    assert {t.shape[1] for n, t in foretold.items() if n.endswith(LEFT)} == {rank}
