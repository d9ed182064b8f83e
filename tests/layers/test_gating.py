# SPDX-License-Identifier: Apache-2.0
"""Invariants of the gate: I1 to I23, on any logits.

For K = 1 < E the weight is the probability over all experts, so identities of normalised weights are tested on
K > 1 or E = 1.
"""

import math
from typing import ClassVar, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_vision import Routing, TopKGate, hard_top_k, soft_top_k
from moe_vision._types import SoftMode
from tests.contracts.layer import LayerContract
from tests.strategies import MAX_EXPERTS, Gating, gatings, separated_gatings

MODES = get_args(SoftMode)
PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SMALL = (1e-3, 1e-2, 0.1, 1.0, 10.0)  # scales at which fp32 neither underflows nor overflows

modes = st.sampled_from(MODES)


def selected(logits: Tensor, k: int) -> Tensor:
    """Mask (B, E) of the first k of the stable descending sort."""
    order = logits.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, True)


def is_normalised(gating: Gating) -> bool:
    return gating.k > 1 or gating.logits.shape[1] == 1


@given(gatings(), modes, st.sampled_from(PRECISIONS))
def test_i01_weights_are_not_negative(gating: Gating, mode: SoftMode, dtype: torch.dtype) -> None:
    assert (soft_top_k(gating.logits.to(dtype), gating.k, mode) >= 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 4e-15), (torch.float32, 1e-6)])
@given(gating=gatings(), mode=modes)
def test_i02_weights_sum_to_one(dtype: torch.dtype, tolerance: float, gating: Gating, mode: SoftMode) -> None:
    total = soft_top_k(gating.logits.to(dtype), gating.k, mode).sum(dim=1)
    if is_normalised(gating):
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=tolerance)
    else:
        assert (total <= 1 + tolerance).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
@given(gating=gatings(min_k=2), mode=modes)
def test_i03_weights_sum_to_one_after_a_cast(
    dtype: torch.dtype, tolerance: float, gating: Gating, mode: SoftMode
) -> None:
    weights = soft_top_k(gating.logits.to(dtype), gating.k, mode)
    assert weights.dtype == torch.float32
    total = weights.to(dtype).float().sum(dim=1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=tolerance)


@given(gatings(), st.sampled_from(["masked", "straight_through"]), st.sampled_from(PRECISIONS))
def test_i04_support_is_the_selected_set(gating: Gating, mode: SoftMode, dtype: torch.dtype) -> None:
    logits = gating.logits.to(dtype)
    chosen = selected(logits, gating.k)
    support = soft_top_k(logits, gating.k, mode) > 0
    assert not (support & ~chosen).any()
    spread = logits.double().amax(dim=1, keepdim=True) - logits.double()
    assert support[chosen & (spread < 80)].all()


@given(gatings(scales=SMALL))
def test_i05_relaxed_weighs_every_expert(gating: Gating) -> None:
    assert (soft_top_k(gating.logits.float(), gating.k, "relaxed") > 0).all()


@given(separated_gatings(), modes, st.sampled_from([torch.float64, torch.float32]))
def test_i06_selected_weigh_at_least_as_much_as_the_others(gating: Gating, mode: SoftMode, dtype: torch.dtype) -> None:
    logits = gating.logits.to(dtype)
    weights, chosen = soft_top_k(logits, gating.k, mode), selected(logits, gating.k)
    lightest_chosen = weights.masked_fill(~chosen, math.inf).amin(dim=1)
    heaviest_other = weights.masked_fill(chosen, 0).amax(dim=1)
    assert (lightest_chosen >= heaviest_other).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-7)])
@given(gating=gatings(), mode=modes)
def test_i07_order_is_preserved(dtype: torch.dtype, tolerance: float, gating: Gating, mode: SoftMode) -> None:
    logits = gating.logits.to(dtype)
    order = logits.sort(dim=1, descending=True, stable=True).indices
    ranked = soft_top_k(logits, gating.k, mode).gather(1, order)
    assert (ranked.diff(dim=1) <= tolerance).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 8e-15), (torch.float32, 1e-6)])
@given(gating=separated_gatings(), mode=modes, data=st.data())
def test_i08_permutation_equivariance(
    dtype: torch.dtype, tolerance: float, gating: Gating, mode: SoftMode, data: st.DataObject
) -> None:
    logits = gating.logits.to(dtype)
    permutation = data.draw(st.permutations(range(logits.shape[1])))
    actual = soft_top_k(logits[:, permutation], gating.k, mode)
    expected = soft_top_k(logits, gating.k, mode)[:, permutation]
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@given(gating=separated_gatings(), mode=modes, shift=st.sampled_from([-100.0, -1.0, 37.0, 1e3]))
def test_i09_shift_invariance(dtype: torch.dtype, gating: Gating, mode: SoftMode, shift: float) -> None:
    logits = gating.logits.to(dtype)
    size = abs(shift) + logits.abs().max().item()
    # The temperature 0.5 of relaxed doubles the rounding of its cut, on top of that of the logits.
    tolerance = 4 * torch.finfo(dtype).eps * size * (3 if mode == "relaxed" else 1)
    actual = soft_top_k(logits + shift, gating.k, mode)
    torch.testing.assert_close(actual, soft_top_k(logits, gating.k, mode), rtol=0, atol=tolerance)


@given(gatings(), modes, st.sampled_from([torch.float64, torch.float32]))
def test_i10_all_selected_is_softmax(gating: Gating, mode: SoftMode, dtype: torch.dtype) -> None:
    logits = gating.logits.to(dtype)
    weights = soft_top_k(logits, logits.shape[1], mode)
    torch.testing.assert_close(weights, logits.softmax(dim=1), rtol=0, atol=torch.finfo(dtype).eps)


@given(st.lists(st.floats(-1e4, 1e4), max_size=9), modes)
def test_i11_a_single_expert_weighs_one(values: list[float], mode: SoftMode) -> None:
    weights = soft_top_k(torch.tensor(values, dtype=torch.float64).reshape(-1, 1), 1, mode)
    assert torch.equal(weights, torch.ones(len(values), 1, dtype=torch.float64))


@given(separated_gatings(min_k=2, scales=(0.1, 1.0)), st.sampled_from(["masked", "straight_through"]))
def test_i12_one_of_many_weighs_its_probability_and_trains_the_router(gating: Gating, mode: SoftMode) -> None:
    logits = gating.logits.requires_grad_()
    weights = soft_top_k(logits, 1, mode)
    best = logits.softmax(dim=1).amax(dim=1)
    torch.testing.assert_close(weights.amax(dim=1), best, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(weights.amax(dim=1).sum(), logits)
    assert (gradient != 0).all()


@given(separated_gatings(), st.sampled_from([0.05, 0.5, 2.0]))
def test_i13_relaxed_ranks_the_selected_first(gating: Gating, temperature: float) -> None:
    weights = soft_top_k(gating.logits, gating.k, "relaxed", temperature)
    assert torch.equal(selected(weights, gating.k), selected(gating.logits, gating.k))


@pytest.mark.parametrize(("dtype", "slack"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@given(gating=gatings(min_k=2, min_batch=1), temperature=st.sampled_from([0.01, 0.1, 0.5, 2.0]))
def test_i14_gap_of_relaxed_is_bounded(dtype: torch.dtype, slack: float, gating: Gating, temperature: float) -> None:
    logits, k = gating.logits.to(dtype), gating.k
    gap = (soft_top_k(logits, k, "relaxed", temperature) - hard_top_k(logits, k)).abs().sum(dim=1)
    if k == logits.shape[1]:
        assert (gap <= slack).all()
        return
    ranked = logits.sort(dim=1, descending=True).values
    a = (ranked[:, k - 1] - ranked[:, k]) / (2 * temperature)
    probability = ranked.softmax(dim=1)
    ratio = probability[:, k:].sum(dim=1) / probability[:, :k].sum(dim=1)
    assert (gap <= 2 * (ratio * (-a).exp() + 1 - a.sigmoid()) + slack).all()


@given(separated_gatings(min_k=2))
def test_i15_relaxed_tends_to_masked(gating: Gating) -> None:
    ranked = gating.logits.sort(dim=1, descending=True).values
    # a = 15 and at most 16 experts: the bound of I14 is below 2 * 16 e^-15 = 1e-5.
    temperature = -ranked.diff(dim=1).max().item() / 30
    gap = soft_top_k(gating.logits, gating.k, "relaxed", temperature) - hard_top_k(gating.logits, gating.k)
    assert (gap.abs().sum(dim=1) < 1e-4).all()


def test_i16_gap_of_relaxed_shrinks_with_temperature() -> None:
    logits = 2 * torch.randn(50_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hard = hard_top_k(logits, 2)
    gaps = [
        (soft_top_k(logits, 2, "relaxed", temperature) - hard).abs().sum(dim=1).mean().item()
        for temperature in (1.0, 0.5, 0.3, 0.1, 0.05, 0.01)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps == pytest.approx([0.142, 0.110, 0.083, 0.036, 0.019, 0.004], abs=2e-3)


@given(gatings(min_k=2, min_batch=1, scales=(0.1, 1.0, 10.0)), st.sampled_from([0.05, 0.5, 1.0]), st.data())
def test_i17_relaxed_is_continuous_across_a_swap(gating: Gating, temperature: float, data: st.DataObject) -> None:
    logits = gating.logits.clone()
    num_experts, step = logits.shape[1], 1e-6
    k = data.draw(st.integers(1, num_experts - 1))
    order = logits.sort(dim=1, descending=True, stable=True).indices
    last, following = order[:, k - 1 : k], order[:, k : k + 1]
    logits.scatter_(1, following, logits.gather(1, last))  # a tie at the cut: the step decides which is selected
    change = torch.zeros_like(logits).scatter(1, last, step)
    above = soft_top_k(logits + change, k, "relaxed", temperature)
    below = soft_top_k(logits - change, k, "relaxed", temperature)
    assert ((above - below).abs() <= 4 * step / temperature).all()


@given(gatings(), st.sampled_from(PRECISIONS))
def test_i18_straight_through_values_are_the_masked(gating: Gating, dtype: torch.dtype) -> None:
    logits = gating.logits.to(dtype)
    masked = hard_top_k(logits, gating.k)
    assert torch.equal(soft_top_k(logits, gating.k, "masked"), masked)
    assert torch.equal(soft_top_k(logits, gating.k, "straight_through"), masked)


@given(separated_gatings(min_k=2, scales=(0.1, 1.0)))
def test_i18_straight_through_gradient_is_that_of_softmax(gating: Gating) -> None:
    logits = gating.logits.requires_grad_()
    direction = torch.randn_like(logits)
    (actual,) = torch.autograd.grad((soft_top_k(logits, gating.k, "straight_through") * direction).sum(), logits)
    (expected,) = torch.autograd.grad((logits.softmax(dim=1) * direction).sum(), logits)
    assert torch.equal(actual, expected)


@given(separated_gatings(scales=(0.1, 1.0)), st.sampled_from([0.05, 0.3, 5.0]))
def test_i19_temperature_keeps_the_order(gating: Gating, temperature: float) -> None:
    weights = soft_top_k(gating.logits, gating.k, "relaxed", temperature)
    assert torch.equal(weights.argsort(dim=1), gating.logits.argsort(dim=1))


@given(gatings(min_k=2))
def test_i19_relaxed_at_infinite_temperature_is_softmax(gating: Gating) -> None:
    weights = soft_top_k(gating.logits, gating.k, "relaxed", temperature=1e12)
    torch.testing.assert_close(weights, gating.logits.softmax(dim=1), rtol=0, atol=1e-5)


@given(gatings(), st.sampled_from(PRECISIONS))
def test_i20_ties_go_to_the_lowest_index(gating: Gating, dtype: torch.dtype) -> None:
    logits = gating.logits.to(dtype)
    indices = TopKGate(gating.k)(logits).indices
    expected = logits.float() if dtype != torch.float64 else logits
    assert torch.equal(indices, expected.sort(dim=1, descending=True, stable=True).indices[:, : gating.k])


@pytest.mark.parametrize("num_experts", range(1, MAX_EXPERTS + 1))
def test_i20_equal_logits_select_the_first(num_experts: int) -> None:
    for k in range(1, num_experts + 1):
        indices = TopKGate(k)(torch.zeros(3, num_experts)).indices
        assert indices.tolist() == [list(range(k))] * 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1e4, 6e4, 1e30])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_i21_huge_logits_stay_finite(mode: SoftMode, size: float, k: int) -> None:
    logits = (size * torch.tensor([[1.0, -1.0, 1.0, 0.5], [0.0, 0.0, 1.0, -1.0], [-1.0, -1.0, -1.0, -1.0]])).clone()
    logits.requires_grad_()
    weights = soft_top_k(logits, k, mode)
    assert weights.isfinite().all()
    (gradient,) = torch.autograd.grad((weights * torch.arange(4.0)).sum(), logits)
    assert gradient.isfinite().all()


def test_i21_half_precision_at_its_largest() -> None:
    weights = hard_top_k(torch.tensor([[65504.0, 65504.0, -65504.0]], dtype=torch.float16), 2)
    assert weights.tolist() == [[0.5, 0.5, 0.0]]


@pytest.mark.parametrize("mode", MODES)
def test_i21_minus_infinity_excludes_an_expert(mode: SoftMode) -> None:
    weights = soft_top_k(torch.tensor([[-math.inf, 0.0, -math.inf, 0.0]]), 2, mode)
    assert weights.tolist() == [[0.0, 0.5, 0.0, 0.5]]


@pytest.mark.parametrize("mode", ["masked", "straight_through"])
@pytest.mark.parametrize(
    ("logits", "weights"),
    [
        ([math.inf, 1, 2, 3], [1, 0, 0, 0]),
        ([math.inf, math.inf, 2, 3], [0.5, 0.5, 0, 0]),
        ([-math.inf] * 4, [0.5, 0.5, 0, 0]),
        ([math.inf, -math.inf, 2, 3], [1, 0, 0, 0]),
    ],
)
def test_i22_infinities_count_as_the_largest_finite_value(
    mode: SoftMode, logits: list[float], weights: list[float]
) -> None:
    assert soft_top_k(torch.tensor([logits]), 2, mode).tolist() == [weights]
    finite = torch.tensor([logits]).nan_to_num()  # its default is the largest finite value
    assert torch.equal(soft_top_k(torch.tensor([logits]), 2, mode), soft_top_k(finite, 2, mode))


@pytest.mark.parametrize("mode", MODES)
@given(gating=gatings(min_batch=1), data=st.data())
def test_i23_nan_spoils_its_own_image_alone(mode: SoftMode, gating: Gating, data: st.DataObject) -> None:
    batch, num_experts = gating.logits.shape
    image, expert = data.draw(st.integers(0, batch - 1)), data.draw(st.integers(0, num_experts - 1))
    spoilt = gating.logits.clone()
    spoilt[image, expert] = math.nan
    expected = soft_top_k(gating.logits, gating.k, mode)
    actual = soft_top_k(spoilt, gating.k, mode)
    others = torch.arange(batch) != image
    assert torch.equal(actual[others], expected[others])
    assert actual[image].isnan().any()
    indices = TopKGate(gating.k)(spoilt).indices
    assert all(len(set(row)) == gating.k for row in indices.tolist())


def test_masked_weights_literally() -> None:
    # z = log(1, 3, 1, 5): the best two weigh 3 / (3 + 5) and 5 / (3 + 5).
    logits = torch.tensor([[1.0, 3.0, 1.0, 5.0]], dtype=torch.float64).log()
    expected = torch.tensor([[0, 0.375, 0, 0.625]], dtype=torch.float64)
    torch.testing.assert_close(hard_top_k(logits, 2), expected)


def test_relaxed_weights_literally() -> None:
    # z = (2, 1, 0), K = 1, tau = 0.5: theta = 1.5, sigma((z - theta) / tau) = sigma(1, -1, -3)
    # = (0.731059, 0.268941, 0.047426); K = 1 < E multiplies the probabilities (0.665241, 0.244728, 0.090031).
    weights = soft_top_k(torch.tensor([[2.0, 1.0, 0.0]]), 1, "relaxed", 0.5)
    torch.testing.assert_close(weights, torch.tensor([[0.486330, 0.065817, 0.004270]]), rtol=0, atol=1e-6)
    # K = 2: theta = 0.5, sigma(3, 1, -1) = (0.952574, 0.731059, 0.268941); products with the probabilities
    # (0.633691, 0.178911, 0.024213), sum 0.836815, normalised (0.757265, 0.213800, 0.028935).
    weights = soft_top_k(torch.tensor([[2.0, 1.0, 0.0]]), 2, "relaxed", 0.5)
    torch.testing.assert_close(weights, torch.tensor([[0.757265, 0.213800, 0.028935]]), rtol=0, atol=2e-6)


class TestTopKGate(LayerContract):
    """The gate as a module: soft in train(), hard in eval()."""

    factory = TopKGate
    arguments: ClassVar = {"top_k": 2, "soft": "relaxed"}
    example_shape = (3, 4)
    bad_arguments = (
        ({"top_k": 0}, r"top_k must be at least 1, got 0"),
        ({"soft": "hard"}, r"soft must be one of masked, relaxed, straight_through, got 'hard'"),
        ({"temperature": 0.0}, r"temperature must be above 0, got 0.0"),
        ({"temperature": math.nan}, r"temperature must be above 0, got nan"),
    )
    bad_inputs = (
        ((4,), r"logits must have shape \(B, E\), got \(4,\)"),
        ((3, 1), r"top_k must be in \[1, num_experts=1\], got 2"),
    )
    cardinality = (
        ({}, (0, 4), (0, 4)),
        ({"top_k": 1}, (1, 1), (1, 1)),
        ({"top_k": 16}, (9, 16), (9, 16)),
        ({"top_k": 1}, (2, 3), (2, 3)),
    )

    @staticmethod
    def features(output: Routing) -> Tensor:
        return output.weights

    def test_feature(self) -> None:
        gate, logits = TopKGate(2, "relaxed"), torch.randn(5, 4)
        assert torch.equal(gate.train()(logits).weights, soft_top_k(logits, 2, "relaxed"))
        routing = gate.eval()(logits)
        assert torch.equal(routing.weights, hard_top_k(logits, 2))
        assert torch.equal(routing.probs, logits.softmax(dim=1))
        assert routing.indices.dtype == torch.int64

    @pytest.mark.parametrize(("k", "message"), [(0, "got 0"), (5, r"\[1, num_experts=4\], got 5")])
    def test_exception_of_the_functions(self, k: int, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            hard_top_k(torch.zeros(2, 4), k)
        with pytest.raises(ValueError, match=message):
            soft_top_k(torch.zeros(2, 4), k)

    def test_exception_of_soft_top_k(self) -> None:
        with pytest.raises(ValueError, match="mode must be one of"):
            soft_top_k(torch.zeros(2, 4), 2, "hard")
        with pytest.raises(ValueError, match="temperature must be above 0, got -1"):
            soft_top_k(torch.zeros(2, 4), 2, temperature=-1)
