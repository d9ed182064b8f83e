# SPDX-License-Identifier: Apache-2.0
"""Post-processing: a case by hand, and a naive suppression as oracle."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_vision.models import DetectOutput, SegmentOutput
from moe_vision.tasks import postprocess, render_masks

Box = list[float]


def output(boxes: list[Box], scores: list[list[float]]) -> DetectOutput:
    return DetectOutput(torch.tensor([boxes]), torch.tensor([scores]))


def test_by_hand() -> None:
    boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 5.0], [50.0, 50.0, 60.0, 60.0]]
    scores = [[0.9, 0.0], [0.8, 0.3], [0.7, 0.0], [0.1, 0.6]]
    (found,) = postprocess(output(boxes, scores), score=0.25, iou=0.7)
    # Class 0: 0.9 stays; the second overlaps it by 80 / 100 and goes; the third by 50 / 100 and stays.
    # Class 1: the second's 0.3 and the fourth's 0.6 stay; the fourth's 0.1 of class 0 is too low.
    assert found["labels"].tolist() == [0, 0, 1, 1]
    assert found["scores"].tolist() == pytest.approx([0.9, 0.7, 0.6, 0.3])
    assert found["boxes"].tolist() == [boxes[0], boxes[2], boxes[3], boxes[1]]
    assert found["labels"].dtype == torch.int64


def naive(boxes: list[Box], scores: list[list[float]], score: float, iou: float) -> list[tuple[float, int, int]]:
    """Keep, best first, what overlaps no kept box of its class by more than ``iou``: (score, label, point)."""
    candidates = sorted(
        ((value, label, point) for point, row in enumerate(scores) for label, value in enumerate(row)), reverse=True
    )
    kept: list[tuple[float, int, int]] = []
    for value, label, point in candidates:
        rivals = [other for _, rival_label, other in kept if rival_label == label]
        if value > score and all(overlap(boxes[point], boxes[other]) <= iou for other in rivals):
            kept.append((value, label, point))
    return kept


def overlap(a: Box, b: Box) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (area_a + area_b - width * height)


@given(
    seed=st.integers(0, 2**16),
    count=st.integers(0, 40),
    classes=st.integers(1, 3),
    iou=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    score=st.sampled_from([0.0, 0.25, 0.9]),
)
def test_equals_naive_suppression(seed: int, count: int, classes: int, iou: float, score: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Whole pixels and halves and quarters as limits keep both sides exact; no two scores are equal.
    corners = torch.randint(0, 20, (count, 2), generator=generator).float()
    boxes = torch.cat([corners, corners + torch.randint(1, 12, (count, 2), generator=generator)], dim=1)
    scores = (torch.randperm(count * classes, generator=generator).float() + 1) / 256
    scores = scores.reshape(count, classes)
    (found,) = postprocess(DetectOutput(boxes[None], scores[None]), score=score, iou=iou)
    expected = naive(boxes.tolist(), scores.tolist(), score, iou)
    assert found["scores"].tolist() == [value for value, _, _ in expected]
    assert found["labels"].tolist() == [label for _, label, _ in expected]
    assert found["boxes"].tolist() == [boxes[point].tolist() for _, _, point in expected]


def test_most_detections() -> None:
    lines = torch.arange(8000.0)
    boxes = torch.stack([lines * 10, lines * 0, lines * 10 + 5, lines * 0 + 5], dim=1)
    scores = torch.linspace(0.3, 0.9, 8000).unsqueeze(1)
    for most in (1, 7, 300):
        (found,) = postprocess(DetectOutput(boxes[None], scores[None]), max_detections=most)
        assert torch.equal(found["scores"], scores[-most:, 0].flip(0))
        assert torch.equal(found["boxes"], boxes[-most:].flip(0))


def test_images_keep_their_own_detections() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0]], [[5.0, 5.0, 9.0, 9.0]], [[1.0, 1.0, 2.0, 2.0]]])
    found = postprocess(DetectOutput(boxes, torch.tensor([[[0.9]], [[0.1]], [[0.8]]])))
    assert [one["boxes"].tolist() for one in found] == [[[0, 0, 10, 10]], [], [[1, 1, 2, 2]]]
    assert found[1]["boxes"].shape == (0, 4)
    assert postprocess(DetectOutput(torch.zeros(0, 84, 4), torch.zeros(0, 84, 2))) == []


def test_masks_go_with_their_boxes() -> None:
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 20.0, 19.0], [10.0, 4.0, 30.0, 28.0]])
    scores = torch.tensor([[[0.6], [0.5], [0.9]], [[0.1], [0.1], [0.7]]])
    coefficients, prototypes = torch.randn(2, 3, 32), torch.randn(2, 32, 8, 10)
    found = postprocess(SegmentOutput(boxes.expand(2, 3, 4), scores, coefficients, prototypes))
    for one, image, points in zip(found, (0, 1), ([2, 0], [2]), strict=True):  # the second repeats the first
        assert set(one) == {"boxes", "scores", "labels", "masks"}
        assert torch.equal(one["boxes"], boxes[points])
        expected = render_masks(coefficients[image, points], prototypes[image], boxes[points], (32, 40))
        assert torch.equal(one["masks"], expected)
        assert one["masks"].any()
    (none,) = postprocess(SegmentOutput(boxes[None], scores[:1] * 0, coefficients[:1], prototypes[:1]))
    assert none["masks"].shape == (0, 32, 40)


def test_nan_scores_are_no_detections() -> None:
    (found,) = postprocess(output([[0.0, 0.0, 9.0, 9.0]] * 2, [[float("nan")], [0.5]]))
    assert found["scores"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": -0.1}, r"score must be in \[0, 1\], got -0.1"),
        ({"score": float("nan")}, r"score must be in \[0, 1\], got nan"),
        ({"iou": 1.5}, r"iou must be in \[0, 1\], got 1.5"),
        ({"max_detections": 0}, "max_detections must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        postprocess(output([[0.0, 0.0, 1.0, 1.0]], [[0.5]]), **arguments)
