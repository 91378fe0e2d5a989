"""Properties of aggregation against float64 oracles, and wrong versions that must fail them."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from strategies.algebra import LowRank, State, add, compress, dense, residual, stack
from strategies.checks import check_finite, problems, signature
from strategies.mean import StreamingMean, num_example_weights, weighted_mean

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
few = settings(max_examples=25, deadline=None, derandomize=True)
dtypes = st.sampled_from([torch.float32, torch.float64])
counts_of_clients = st.lists(st.integers(1, 1000), min_size=1, max_size=5)
Clients = list[LowRank]


def clients(k: int, seed: int, dtype: torch.dtype, shape: tuple[int, int, int]) -> Clients:
    m, n, r = shape
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(m, r, generator=generator, dtype=torch.float64).to(dtype),
            torch.randn(r, n, generator=generator, dtype=torch.float64).to(dtype),
        )
        for _ in range(k)
    ]


def states(k: int, seed: int, dtype: torch.dtype) -> list[State]:
    return [{"x.lora_A": A, "x.lora_B": B} for B, A in clients(k, seed, dtype, (7, 5, 2))]


def mean_of(factors: Clients, weights: Sequence[float]) -> LowRank:
    mean = weighted_mean([{"L": L, "R": R} for L, R in factors], weights)
    return mean["L"], mean["R"]


def mean_of_products(factors: Clients, weights: Sequence[float]) -> Tensor:
    products = [p * (L.double() @ R.double()) for (L, R), p in zip(factors, weights, strict=True)]
    return torch.stack(products).sum(0)


def relative_error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth.double()).norm() / truth.double().norm())


# --- weights ---------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=9).filter(any))
@few
def test_weights_sum_to_one_and_follow_the_counts(counts: list[int]) -> None:
    weights = num_example_weights(counts)

    assert math.isclose(math.fsum(weights), 1.0, rel_tol=1e-12)
    assert weights == [count / sum(counts) for count in counts]


@pytest.mark.parametrize("counts", [[], [0, 0], [3, -1], [1, math.nan], [1, math.inf]])
def test_counts_that_cannot_weigh_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="example"):
        num_example_weights(counts)


# --- means -----------------------------------------------------------------------------------


@given(counts_of_clients, st.integers(0, 99), dtypes)
@few
def test_mean_equals_the_float64_oracle(counts: list[int], seed: int, dtype: torch.dtype) -> None:
    uploads = states(len(counts), seed, dtype)

    mean = weighted_mean(uploads, counts)

    for name, value in mean.items():
        weights = torch.tensor(counts, dtype=torch.float64) / sum(counts)
        truth = torch.einsum("k,kij->ij", weights, torch.stack([u[name] for u in uploads]).double())
        assert value.dtype == dtype
        assert relative_error(value, truth) < TOLERANCE[dtype] / 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_mean_of_one_client_is_that_client_bit_for_bit(dtype: torch.dtype) -> None:
    (upload,) = states(1, 0, dtype)

    mean = weighted_mean([upload], [0.3])

    assert all(torch.equal(mean[name], upload[name]) for name in upload)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_mean_of_two_does_not_depend_on_their_order(dtype: torch.dtype) -> None:
    uploads = states(2, 1, dtype)

    there, back = weighted_mean(uploads, [0.3, 0.7]), weighted_mean(uploads[::-1], [0.7, 0.3])

    assert all(torch.equal(there[name], back[name]) for name in there)


@given(st.permutations(range(5)), st.integers(0, 99))
@few
def test_mean_does_not_depend_on_the_order_of_clients(order: list[int], seed: int) -> None:
    uploads, weights = states(5, seed, torch.float64), num_example_weights([5, 1, 9, 2, 4])

    straight = weighted_mean(uploads, weights)
    shuffled = weighted_mean([uploads[i] for i in order], [weights[i] for i in order])

    for name in straight:
        torch.testing.assert_close(shuffled[name], straight[name], rtol=1e-12, atol=1e-14)


def test_bfloat16_mean_is_the_exact_mean_rounded_once() -> None:
    uploads = states(25, 2, torch.bfloat16)

    mean = weighted_mean(uploads, [1.0] * 25)

    for name, value in mean.items():
        truth = torch.stack([upload[name].double() for upload in uploads]).mean(0)
        assert torch.equal(value, truth.to(torch.bfloat16))


def test_mean_leaves_its_inputs_alone() -> None:
    uploads = states(2, 3, torch.float64)
    before = [{name: tensor.clone() for name, tensor in upload.items()} for upload in uploads]

    weighted_mean(uploads, [2.0, 5.0])

    assert all(torch.equal(a[n], b[n]) for a, b in zip(uploads, before, strict=True) for n in a)


def test_empty_state_has_an_empty_mean() -> None:
    assert weighted_mean([{}, {}], [1.0, 2.0]) == {}


def check_a_round_uses_its_own_uploads(mean: Callable[[list[State]], State]) -> None:
    rounds = [states(3, seed, torch.float64) for seed in (4, 5)]
    results = [mean(uploads) for uploads in rounds]
    for name, value in results[1].items():
        truth = torch.stack([upload[name] for upload in rounds[1]]).mean(0)
        torch.testing.assert_close(value, truth)


def test_a_round_uses_its_own_uploads_only() -> None:
    check_a_round_uses_its_own_uploads(lambda uploads: weighted_mean(uploads, [1.0] * 3))


def test_a_mean_over_past_rounds_too_is_caught() -> None:
    kept = StreamingMean()

    def never_cleared(uploads: list[State]) -> State:
        for upload in uploads:
            kept.add(upload, 1.0)
        return kept.result()

    with pytest.raises(AssertionError):
        check_a_round_uses_its_own_uploads(never_cleared)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({}, "'a' is missing"),
        ({"a": torch.zeros(2), "b": torch.zeros(2)}, "'b' is unexpected"),
        ({"a": torch.zeros(2, 1)}, r"'a' has shape \(2, 1\) instead of \(2,\)"),
        ({"a": torch.zeros(2).double()}, "'a' is torch.float64 instead of torch.float32"),
        ({"a": torch.tensor([1.0, math.nan])}, "'a' has 1 NaN or infinite of 2 values"),
    ],
)
def test_a_refused_state_leaves_the_mean_as_it_was(second: State, message: str) -> None:
    mean = StreamingMean()
    mean.add({"a": torch.ones(2)}, 1.0)

    with pytest.raises(ValueError, match=message):
        mean.add(second, 1.0)

    assert torch.equal(mean.result()["a"], torch.ones(2))


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'steps' is torch.int64"):
        weighted_mean([{"steps": torch.ones(2, dtype=torch.int64)}], [1.0])


@pytest.mark.parametrize("weights", [[], [1.0], [0.0, 0.0], [1.0, -1.0], [1.0, math.nan]])
def test_weights_that_give_no_mean_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        weighted_mean(states(2, 0, torch.float32), weights)


def test_no_states_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no client"):
        weighted_mean([], [])
    with pytest.raises(ValueError, match="no mean"):
        StreamingMean().result()


# --- the residual of FedEx-LoRA --------------------------------------------------------------

Residual = Callable[[Clients, list[float], LowRank], Tensor]


def check_exact(of: Residual, counts: list[int], seed: int, dtype: torch.dtype) -> None:
    """W0 + residual + L̄R̄ is W0 + Σ p_i L_i R_i, for a Linear and for a transposed Conv1D weight."""
    factors, weights = clients(len(counts), seed, dtype, (7, 5, 2)), num_example_weights(counts)
    mean = mean_of(factors, weights)
    update = of(factors, weights, mean)
    linear = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    truth = linear + mean_of_products(factors, weights)
    assert update.shape == linear.shape
    assert relative_error(linear + update + dense(mean), truth) < TOLERANCE[dtype]
    conv1d = linear.T + update.T + dense(mean).T
    assert relative_error(conv1d, truth.T) < TOLERANCE[dtype]


def dense_residual(factors: Clients, weights: list[float], mean: LowRank) -> Tensor:
    return dense(residual(factors, weights, mean))


@given(counts_of_clients, st.integers(0, 99), dtypes)
@few
def test_residual_makes_aggregation_exact(counts: list[int], seed: int, dtype: torch.dtype) -> None:
    check_exact(dense_residual, counts, seed, dtype)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda factors, weights, mean: dense_residual(factors, weights, mean).T,
        lambda factors, weights, mean: torch.zeros_like(dense(mean)),
        lambda factors, weights, mean: dense_residual(factors, [1 / 3] * 3, mean),
    ],
    ids=["transposed", "plain averaging", "equal weights"],
)
def test_a_wrong_residual_is_caught(wrong: Residual) -> None:
    with pytest.raises(AssertionError):
        check_exact(wrong, [1, 2, 6], 0, torch.float64)


def test_a_transposed_residual_of_a_square_layer_is_caught_by_its_value() -> None:
    factors, weights = clients(3, 0, torch.float64, (6, 6, 2)), [0.2, 0.3, 0.5]
    mean, truth = mean_of(factors, weights), mean_of_products(factors, weights)

    update = dense_residual(factors, weights, mean)

    assert relative_error(dense(mean) + update, truth) < 1e-12
    assert relative_error(dense(mean) + update.T, truth) > 0.1


@given(counts_of_clients, st.integers(1, 3), st.integers(0, 99), dtypes, st.floats(1e-3, 1.0))
@few
def test_rank_of_the_residual_is_at_most_that_of_the_deviations(
    counts: list[int], r: int, seed: int, dtype: torch.dtype, drift: float
) -> None:
    (start, *_), *moves = [clients(1, seed + i, dtype, (40, 30, r)) for i in range(9)]
    factors = [
        (start[0] + drift * move[0][0], start[1] + drift * move[0][1])
        for move in moves[: len(counts)]
    ]
    weights = num_example_weights(counts)

    L, R = residual(factors, weights, mean_of(factors, weights))

    assert L.shape == (40, R.shape[0])
    assert R.shape == (L.shape[1], 30)
    assert L.shape[1] <= (len(counts) - 1) * r


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 0.3, 1e-6])
def test_residual_vanishes_for_equal_right_factors(dtype: torch.dtype, scale: float) -> None:
    factors, weights = clients(4, 6, dtype, (40, 30, 3)), num_example_weights([7, 1, 5, 2])
    frozen = [(scale * L, factors[0][1]) for L, _ in factors]

    L, R = residual(frozen, weights, mean_of(frozen, weights))

    assert L.shape == (40, 0)
    assert R.shape == (0, 30)
    assert torch.equal(dense((L, R)), torch.zeros(40, 30, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_residual_of_one_client_is_empty(dtype: torch.dtype) -> None:
    factors = clients(1, 7, dtype, (6, 4, 2))

    L, R = residual(factors, [1.0], factors[0])

    assert (L.shape, R.shape) == ((6, 0), (0, 4))


def test_residual_makes_up_for_what_a_bfloat16_mean_loses() -> None:
    factors, weights = clients(3, 8, torch.bfloat16, (40, 30, 2)), [0.5, 0.25, 0.25]
    mean = mean_of(factors, weights)

    update = residual(factors, weights, mean)

    assert update[0].dtype == torch.float32
    total = dense(mean) + dense(update)
    assert relative_error(total, mean_of_products(factors, weights)) < 1e-5


def test_residual_does_not_depend_on_the_order_of_clients() -> None:
    factors, weights = clients(4, 9, torch.float64, (7, 5, 2)), [0.1, 0.2, 0.3, 0.4]
    mean = mean_of(factors, weights)

    straight = dense(residual(factors, weights, mean))
    reversed_ = dense(residual(factors[::-1], weights[::-1], mean))

    torch.testing.assert_close(reversed_, straight, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("weights", [[1, 1], [0.5, 0.6], [1.5, -0.5], [1.0]])
def test_weights_that_are_no_shares_are_refused(weights: list[float]) -> None:
    factors = clients(2, 0, torch.float64, (7, 5, 2))

    with pytest.raises(ValueError, match="weights"):
        residual(factors, weights, factors[0])


def test_factors_that_do_not_fit_are_refused() -> None:
    (L, R), transposed = (
        clients(1, 0, torch.float64, (7, 5, 2))[0],
        (torch.ones(5, 2), torch.ones(2, 7)),
    )

    with pytest.raises(ValueError, match=r"factors 1 have shapes \(5, 2\) and \(2, 7\)"):
        residual([(L, R), transposed], [0.5, 0.5], (L, R))


# --- stacks and compression ------------------------------------------------------------------


@given(counts_of_clients, st.integers(0, 99), dtypes)
@few
def test_stack_is_the_weighted_sum(counts: list[int], seed: int, dtype: torch.dtype) -> None:
    factors, weights = clients(len(counts), seed, dtype, (7, 5, 2)), num_example_weights(counts)

    L, R = stack(factors, weights)

    assert L.shape == (7, 2 * len(counts))
    assert L.dtype == R.dtype == dtype
    assert relative_error(dense((L, R)), mean_of_products(factors, weights)) < TOLERANCE[dtype]


def test_stack_takes_clients_of_different_ranks() -> None:
    small, large = clients(1, 0, torch.float64, (7, 5, 1)), clients(1, 1, torch.float64, (7, 5, 3))

    stacked = stack([*small, *large], [0.25, 0.75])

    truth = mean_of_products([*small, *large], [0.25, 0.75])
    assert relative_error(dense(stacked), truth) < 1e-12


@given(st.integers(0, 6), st.integers(0, 99))
@few
def test_truncation_loses_the_discarded_singular_values(rank: int, seed: int) -> None:
    (factors,) = clients(1, seed, torch.float64, (9, 7, 5))
    sigma = torch.linalg.svdvals(dense(factors))

    (L, R), error = compress(factors, rank)

    assert L.shape[1] == R.shape[0] == min(rank, 5)
    assert error == pytest.approx(float(sigma[rank:].norm()), rel=1e-10, abs=1e-12)
    lost = float((dense(factors) - dense((L, R))).norm())
    assert error == pytest.approx(lost, rel=1e-10, abs=1e-12)


def test_compression_finds_the_rank_and_balances_the_factors() -> None:
    (factors,) = clients(1, 0, torch.float64, (9, 7, 2))

    (L, R), error = compress(stack([factors, factors], [1.0, 1e6]))

    assert L.shape[1] == 2
    assert error < 1e-6
    assert float(L.norm()) == pytest.approx(float(R.norm()))


@pytest.mark.parametrize("shape", [(9, 7, 0), (3, 4, 8), (1, 1, 1)])
def test_compression_of_odd_shapes(shape: tuple[int, int, int]) -> None:
    (factors,) = clients(1, 0, torch.float64, shape)

    thin, error = compress(factors)

    assert thin[0].shape[1] <= min(shape)
    torch.testing.assert_close(dense(thin), dense(factors), rtol=1e-12, atol=1e-12)
    assert error < 1e-12


def test_tolerance_counts_small_singular_values_as_zero() -> None:
    diagonal = torch.diag(torch.tensor([1.0, 1e-3]))

    thin, error = compress((diagonal, torch.eye(2)), tolerance=1e-2)

    assert thin[0].shape[1] == 1
    assert error == pytest.approx(1e-3)


def test_sum_of_residuals_is_compressed() -> None:
    first, second = clients(2, 0, torch.float64, (7, 5, 2))
    minus_first = (-first[0], first[1])

    total = add(first, second, minus_first)

    assert total[0].shape[1] == 2
    torch.testing.assert_close(dense(total), dense(second))


def test_what_cannot_be_compressed_is_refused() -> None:
    with pytest.raises(ValueError, match="rank must be at least 0"):
        compress((torch.ones(2, 1), torch.ones(1, 2)), rank=-1)
    with pytest.raises(ValueError, match="'R' has 1 NaN"):
        compress((torch.ones(2, 1), torch.tensor([[1.0, math.nan]])))
    with pytest.raises(ValueError, match="nothing to aggregate"):
        stack([], [])


# --- checks of a state -----------------------------------------------------------------------


def test_a_state_fits_its_own_signature() -> None:
    state = {"b": torch.zeros(2, 3, dtype=torch.bfloat16), "a": torch.zeros(())}

    assert problems(state, signature(state)) is None
    assert problems({}, {}) is None


def test_the_first_problem_is_named() -> None:
    expected = {"a": ((2,), torch.float32), "b": ((2,), torch.float32)}

    problem = problems({"a": torch.tensor([math.inf, 0.0]), "b": torch.zeros(3)}, expected)

    assert problem == "tensor 'b' has shape (3,) instead of (2,)."


def test_values_that_are_not_finite_are_named() -> None:
    check_finite({"a": torch.zeros(2), "n": torch.tensor([1])})
    with pytest.raises(ValueError, match="'b' has 2 NaN or infinite of 3 values"):
        check_finite({"a": torch.zeros(2), "b": torch.tensor([math.nan, 1.0, -math.inf])})
