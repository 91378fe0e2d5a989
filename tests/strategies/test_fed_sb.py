"""Fed-SB is exact (property 3 of the method): the mean of the cores is the mean of the products."""

from collections.abc import Callable
from typing import Any

import torch
from federation import Federation, connected
from local_grid import LocalGrid, puppet, trained
from torch import Tensor
from transformers import AutoModelForCausalLM

from fedtuners.adapters import LoraSb, adapter_state, by_module
from fedtuners.tasks import collate, load, partition
from fedtuners.tuned import TunedModel
from strategies.algebra import State
from strategies.fed_sb import FedSB
from strategies.messages import Request
from strategies.updates import Update

Made = Callable[..., Federation]


def cores(round_: int, client: int) -> State:
    generator = torch.Generator().manual_seed(10 * round_ + client)
    return {"x.lora_sb_R": torch.randn(4, 4, generator=generator, dtype=torch.float64)}


def mean_of(products: list[Tensor]) -> Tensor:
    return torch.stack(products).mean(0)


def test_the_mean_core_is_the_mean_product_of_that_round_only() -> None:
    grid = LocalGrid(2, client=puppet(lambda r: trained(r, cores(r.round, r.client))))
    strategy = connected(FedSB(LoraSb(rank=4)), cores(0, 0), grid)
    generator = torch.Generator().manual_seed(0)
    B = torch.linalg.qr(torch.randn(9, 4, generator=generator, dtype=torch.float64)).Q
    A = torch.linalg.qr(torch.randn(7, 4, generator=generator, dtype=torch.float64)).Q.T

    strategy.start(grid, strategy.packed(), 3, 5)

    factors = {"lora_sb_A": A, "lora_sb_B": B, "lora_sb_R": strategy.state["x.lora_sb_R"]}
    found = LoraSb(rank=4).delta(factors)

    def products(rounds: range) -> list[Tensor]:
        return [B @ cores(t, c)["x.lora_sb_R"] @ A for t in rounds for c in range(3)]

    torch.testing.assert_close(found, mean_of(products(range(3, 4))), atol=1e-12, rtol=1e-12)
    # The known wrong version averages the uploads of all past rounds.
    assert (found - mean_of(products(range(1, 4)))).norm() > 0.1 * found.norm()


def test_the_weights_are_the_numbers_of_examples() -> None:
    def answer(request: Request) -> Any:
        return trained(request, cores(1, request.client), examples=(1, 10, 100)[request.client])

    grid = LocalGrid(2, client=puppet(answer))
    strategy = connected(FedSB(LoraSb(rank=4)), cores(0, 0), grid)

    strategy.start(grid, strategy.packed(), 1, 5)

    R = [cores(1, client)["x.lora_sb_R"] for client in range(3)]
    right = (R[0] + 10 * R[1] + 100 * R[2]) / 111
    torch.testing.assert_close(strategy.state["x.lora_sb_R"], right, atol=1e-12, rtol=1e-12)


def test_the_global_model_is_w0_plus_the_mean_of_the_clients(federation: Made) -> None:
    made = federation("strategy=fed_sb", "train.learning_rate=0.05", "start.learning_rate=0.05")
    ids = torch.randint(3, 250, (4, 12), generator=torch.Generator().manual_seed(0))

    made.rounds(2)

    with torch.no_grad():
        found = made.tuned.model(input_ids=ids).logits.double()
    (frozen,) = made.strategy.shared.values()
    base = AutoModelForCausalLM.from_pretrained(made.config.model.name).double().eval()
    with torch.no_grad():
        before = base(input_ids=ids).logits
        for upload, p in zip(made.uploads(2).values(), made.weights(2), strict=True):
            for module, factors in by_module(upload | frozen).items():
                doubled = {name: value.double() for name, value in factors.items()}
                weight = base.get_submodule(module).weight
                weight.data += p * made.strategy.adapter.delta(doubled)
        truth = base(input_ids=ids).logits
    assert (found - truth).abs().max() < 1e-4 * (truth - before).abs().max()


def test_a_full_batch_step_on_every_client_is_the_centralised_step(federation: Made) -> None:
    """SGD on R: averaging R − η g_i by p_i is R − η g, with g over all clients' rows."""
    made = federation("strategy=fed_sb", model="gpt2")  # Llama's norms would round to fp32
    made.install()
    tuned = made.tuned
    tuned.model.double()
    start = {name: value.double() for name, value in made.strategy.state.items()}
    rate = 0.1
    encoded = _clients_rows(made)

    updated, sizes = [], [len(rows) for rows in encoded]
    for rows in encoded:
        gradient = full_gradient(tuned, rows)
        updated.append({name: value - rate * gradient[name] for name, value in start.items()})
    counts = [size / sum(sizes) for size in sizes]
    state64 = _combined(updated, counts)
    central = full_gradient(tuned, [row for rows in encoded for row in rows])

    assert len(set(sizes)) > 1
    for name, value in start.items():
        torch.testing.assert_close(
            state64[name], value - rate * central[name], atol=1e-12, rtol=1e-12
        )
        assert central[name].norm() > 1e-6
    # One client's step alone, or an unweighted mean, is another.
    plain = _combined(updated, [1 / len(updated)] * len(updated))
    assert any((plain[name] - state64[name]).norm() > 1e-8 for name in start)


def _clients_rows(made: Federation) -> list[list[Any]]:
    """Every client's tokenised rows, as its handler takes them."""
    rows = load(made.config.data, made.config.seed).train
    clients = len(made.exchange.nodes)
    parts = [partition(rows, made.config.partition, clients, c) for c in range(clients)]
    return [list(made.tuned.task.encode(part, made.tuned.tokenizer).items) for part in parts]


def full_gradient(tuned: TunedModel, rows: list[Any]) -> State:
    """The gradient of the mean loss over these rows, by name."""
    batch = collate(rows, tuned.pad)
    tuned.model.zero_grad()
    tuned.task.per_example_loss(tuned.model, batch).mean().backward()
    named = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): p.grad
        for name, p in tuned.model.named_parameters()
        if p.requires_grad
    }
    return {name: grad.clone() for name, grad in named.items() if grad is not None}


def _combined(states: list[State], weights: list[float]) -> State:
    updates = [Update(i, state, 1, {}) for i, state in enumerate(states)]
    return FedSB(LoraSb(rank=4)).combine(updates, weights)


def test_a_step_of_the_optimiser_follows_the_same_gradient(federation: Made) -> None:
    """The cores that real clients send differ from the start by their own gradients' signs."""
    made = federation("strategy=fed_sb", "train.steps=1", "train.batch_size=64")
    made.install()
    start = made.strategy.state
    rows = _clients_rows(made)
    signs = [
        {name: grad.sign() for name, grad in full_gradient(made.tuned, own).items()} for own in rows
    ]

    made.rounds(1)

    rate = made.config.train.learning_rate
    for client, upload in made.uploads(1).items():
        for name, value in upload.items():
            # AdamW's first step is η times the sign, but where the gradient is near its ε.
            agree = torch.isclose(value, start[name] - rate * signs[client][name], atol=rate / 10)
            assert agree.double().mean() > 0.9


def test_r_squared_numbers_a_module_travel(federation: Made) -> None:
    made = federation("strategy=fed_sb")

    assert {tuple(value.shape) for value in made.strategy.state.values()} == {(4, 4)}
    assert set(made.strategy.state) == {f"{module}.lora_sb_R" for module in made.tuned.shapes}
    assert adapter_state(made.tuned.model).keys() > made.strategy.state.keys()
