# SPDX-License-Identifier: Apache-2.0
"""Task-aligned assignment, with the arithmetic by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from moe_vision.losses.assign import assign_batch, task_aligned_assign
from moe_vision.losses.detection import detection_loss
from moe_vision.models.anchors import anchor_points, decode_boxes

# CIoU of [0, 0, 16, 16] with its upper half [0, 0, 16, 8]: IoU = 1/2; the centres are 4 apart and the diagonal of the
# enclosing box is sqrt(512): -16/512; the shapes differ by v = 4/pi^2 (atan 1 - atan 2)^2 = 0.041956, weighted by
# v / (1 - IoU + v) = 0.077417: 0.5 - 0.03125 - 0.003248 = 0.465502.
HALF = 0.465502


def grid(side: int, stride: int = 8) -> Tensor:
    """Centres of side x side cells, row by row."""
    centres = (torch.arange(side) + 0.5) * stride
    return torch.cartesian_prod(centres, centres).flip(1)


def test_points_answer_only_if_strictly_inside() -> None:
    points = torch.tensor([[4.0, 4.0], [12.0, 12.0], [20.0, 12.0], [24.0, 12.0], [12.0, 8.0], [28.0, 12.0]])
    objects = torch.tensor([[8.0, 8.0, 24.0, 24.0]])
    assigned = task_aligned_assign(torch.ones(6, 1), objects.expand(6, 4), points, objects, torch.tensor([0]))
    # The first and last lie outside, the fourth on the right side, the fifth on the top.
    assert assigned.points.tolist() == [1, 2]
    assert assigned.objects.tolist() == [0, 0]


def test_the_ten_best_aligned_points_answer() -> None:
    points, objects = grid(4), torch.tensor([[0.0, 0.0, 32.0, 32.0]])
    scores = torch.linspace(0.1, 1.6, 16).div(1.6)[torch.randperm(16)].unsqueeze(1)
    assigned = task_aligned_assign(scores, objects.expand(16, 4), points, objects, torch.tensor([0]))
    best = scores[:, 0].argsort(descending=True)[:10]
    assert assigned.points.tolist() == sorted(best.tolist())
    # All boxes are exact, so the alignment is the root of the score; the best score is 1 and the best CIoU is 1.
    torch.testing.assert_close(assigned.quality, scores[assigned.points, 0].sqrt())


def test_alignment_reads_the_score_of_the_object_s_class() -> None:
    points, objects = grid(4), torch.tensor([[0.0, 0.0, 32.0, 32.0]])
    scores = torch.zeros(16, 3)
    scores[:12, 0], scores[4:14, 2] = 1.0, 0.5
    assigned = task_aligned_assign(scores, objects.expand(16, 4), points, objects, torch.tensor([2]))
    assert assigned.points.tolist() == list(range(4, 14))


def test_a_contested_point_goes_to_the_higher_ciou() -> None:
    objects = torch.tensor([[0.0, 0.0, 16.0, 16.0], [0.0, 0.0, 16.0, 8.0]])
    # The prediction is exactly the second object, though its score is for the first:
    # alignment 1^0.5 HALF^6 = 0.010 with the first, (1e-6)^0.5 1^6 = 0.001 with the second.
    scores = torch.tensor([[1.0, 1e-6]])
    assigned = task_aligned_assign(scores, objects[1:], torch.tensor([[8.0, 4.0]]), objects, torch.tensor([0, 1]))
    assert assigned.objects.tolist() == [1]
    assert assigned.quality.tolist() == [1.0]  # its best point gets its best CIoU


def test_quality_is_the_alignment_scaled_to_the_best_ciou_of_the_object() -> None:
    points, objects = torch.tensor([[8.0, 4.0], [8.0, 12.0]]), torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    boxes, scores = torch.tensor([[0.0, 0.0, 16.0, 16.0], [0.0, 0.0, 16.0, 8.0]]), torch.tensor([[0.25], [1.0]])
    assigned = task_aligned_assign(scores, boxes, points, objects, torch.tensor([0]))
    # Alignments 0.25^0.5 * 1^6 = 0.5 and 1 * HALF^6 = 0.0101749; divided by the best and times the best CIoU, 1.
    assert assigned.quality.tolist() == pytest.approx([1.0, 0.0101749 / 0.5], rel=1e-4)
    # Without the exact one the best CIoU is HALF.
    alone = task_aligned_assign(scores[1:], boxes[1:], points[1:], objects, torch.tensor([0]))
    assert alone.quality.tolist() == pytest.approx([HALF], rel=1e-5)


def test_predictions_far_from_the_object_still_answer_without_weight() -> None:
    points, objects = torch.tensor([[8.0, 8.0]]), torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    far = torch.tensor([[500.0, 500.0, 510.0, 510.0]])
    assigned = task_aligned_assign(torch.full((1, 1), 0.5), far, points, objects, torch.tensor([0]))
    assert assigned.points.tolist() == [0]
    assert assigned.quality.tolist() == [0.0]


def test_no_objects() -> None:
    none = task_aligned_assign(
        torch.rand(16, 2), torch.rand(16, 4), grid(4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    )
    assert [part.shape for part in none] == [(0,), (0,), (0,)]
    assert none.points.dtype == none.objects.dtype == torch.int64


def test_an_object_between_the_points_takes_the_nearest_of_the_finest_grid() -> None:
    # Points at (4, 4), (12, 4), (4, 12), (12, 12) and, of stride 16, (8, 8).
    points, strides = torch.cat([grid(2), grid(1, 16)]), torch.tensor([8.0] * 4 + [16.0])
    # The first has its centre at (9.5, 10), nearest to (8, 8) and then to (12, 12).
    objects = torch.tensor([[8.5, 9.0, 10.5, 11.0], [0.0, 5.0, 16.0, 7.0]])
    boxes = torch.tensor([[0.0, 4.0, 16.0, 8.0]] * 5)
    boxes[3] = torch.tensor([8.0, 8.0, 12.0, 12.0])
    assigned = task_aligned_assign(torch.ones(5, 1), boxes, points, objects, torch.tensor([0, 0]), strides)
    # The second, thin, has its centre at (8, 6), as near to (4, 4) as to (12, 4), and takes the first.
    assert assigned.points.tolist() == [0, 3]
    assert assigned.objects.tolist() == [1, 0]
    # CIoU of the second with [0, 4, 16, 8], whose centre is its own: IoU 32 / 64, less
    # v = 4/pi^2 (atan 8 - atan 4)^2 = 0.005897 weighted by v / (1 - IoU + v) = 0.011656: 0.499931.
    # CIoU of the first with [8, 8, 12, 12]: IoU 4 / 16; the centres are 1/2 apart, the diagonal is sqrt(32):
    # 0.25 - 1/128 = 0.242188.
    assert assigned.quality.tolist() == pytest.approx([0.499931, 0.242188], abs=1e-6)
    # If all are of one grid, (8, 8) is the nearest.
    alone = task_aligned_assign(torch.ones(5, 1), boxes, points, objects[:1], torch.tensor([0]))
    assert alone.points.tolist() == [4]


def test_an_object_between_the_points_counts_a_tenth_however_far_its_prediction() -> None:
    objects, boxes = torch.tensor([[5.0, 5.0, 11.0, 11.0]]), torch.tensor([[-56.0, -56.0, 64.0, 64.0]])
    assigned = task_aligned_assign(torch.zeros(16, 2), boxes.expand(16, 4), grid(4), objects, torch.tensor([1]))
    assert assigned.points.tolist() == [0]
    # CIoU 36 / 120^2 = 0.0025, less (4 sqrt 2)^2 / (2 * 120^2) = 0.0011: 0.0014
    assert assigned.quality.tolist() == pytest.approx([0.1])


def test_an_object_between_the_points_takes_none_from_one_that_has_some_inside() -> None:
    large, dot = torch.tensor([[1.0, 1.0, 7.0, 7.0]]), torch.tensor([[5.0, 5.0, 6.0, 6.0]])
    # The dot's nearest point is (4, 4), the only one inside the large object: though it predicts the dot best, the dot
    # takes the next, (12, 4).
    boxes, labels = torch.tensor([[4.0, 4.0, 6.0, 6.0], *[[5.0, 5.0, 12.0, 6.0]] * 3]), torch.tensor([0, 0])
    both = task_aligned_assign(torch.ones(4, 1), boxes, grid(2), torch.cat([large, dot]), labels)
    alone = task_aligned_assign(torch.ones(4, 1), boxes, grid(2), large, labels[:1])
    assert both.points.tolist() == [0, 1]
    assert both.objects.tolist() == [0, 1]
    assert both.quality[0] == alone.quality[0] > 0
    # No point is left.
    full = task_aligned_assign(torch.ones(1, 1), dot, grid(1), torch.cat([large, dot]), labels)
    assert (full.points.tolist(), full.objects.tolist()) == ([0], [0])


@pytest.mark.parametrize(
    "box", [(5.0, 5.0, 7.0, 7.0), (22.5, 30.0, 25.5, 33.0), (5.0, 37.0, 58.0, 39.0), (4.5, 5.0, 7.9, 7.9)]
)
def test_an_object_between_the_points_is_learnt(box: tuple[float, ...]) -> None:
    points, strides = anchor_points([(8, 8), (4, 4), (2, 2)], torch.device("cpu"))
    sides = torch.zeros(1, 84, 4, 16, requires_grad=True)  # boxes of 15 strides, as in an untrained network
    scores = torch.full((1, 84, 1), -5.0, requires_grad=True)
    target = {"boxes": torch.tensor([box]), "labels": torch.tensor([0])}
    optimizer = torch.optim.Adam([sides, scores], lr=0.1)
    for _ in range(400):
        boxes = decode_boxes(sides, torch.arange(16.0), points, strides)
        loss = sum(detection_loss(sides, boxes, scores, points, strides, [target]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    best = scores[0, :, 0].argmax()
    assert strides[best] == 8  # though to the last box (8, 8), of stride 16, is nearer
    assert scores[0, best].sigmoid() > 0.2
    # A box reaches from its point on, which lies at most 4 pixels from the object's centre in x and y.
    assert (boxes[0, best] - torch.tensor(box)).abs().max() < 4
    assert box_iou(boxes[0, best, None], target["boxes"]) > 0.2


@given(seed=st.integers(0, 2**16), num_objects=st.integers(0, 30))
def test_rules_hold_for_any_predictions(seed: int, num_objects: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = grid(8)

    def random_boxes(count: int) -> Tensor:
        corners = torch.rand(count, 2, 2, generator=generator).mul(64).sort(dim=1).values
        corners[::3, 1] = corners[::3, 0] + 2  # and small ones
        return torch.cat([corners[:, 0], corners[:, 1] + 1], dim=1)

    objects, boxes = random_boxes(num_objects), random_boxes(64)
    labels = torch.randint(3, (num_objects,), generator=generator)
    scores = torch.rand(64, 3, generator=generator)
    assigned = task_aligned_assign(scores, boxes, points, objects, labels)
    assert assigned.points.unique().numel() == assigned.points.numel()
    assert ((assigned.quality >= 0) & (assigned.quality <= 1)).all()
    assert (torch.bincount(assigned.objects, minlength=num_objects) <= 10).all()
    inside = ((points > objects[:, None, :2]) & (points < objects[:, None, 2:])).all(dim=2)
    between = ~inside.any(dim=1)
    assert (inside[assigned.objects, assigned.points] | between[assigned.objects]).all()
    assert (torch.bincount(assigned.objects, minlength=num_objects)[between] <= 1).all()
    # The objects between the points change nothing for the others.
    others = task_aligned_assign(scores, boxes, points, objects[~between], labels[~between])
    of_others = ~between[assigned.objects]
    assert torch.equal(assigned.points[of_others], others.points)
    assert torch.equal(assigned.quality[of_others], others.quality)


def test_objects_of_a_batch_are_numbered_one_image_after_the_other() -> None:
    points = torch.tensor([[4.0, 4.0], [12.0, 4.0]])
    cells = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0]])
    scores = torch.zeros(3, 2, 2)  # logits: probabilities of 1/2
    targets = [
        {"boxes": cells, "labels": torch.tensor([0, 1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        {"boxes": cells[1:], "labels": torch.tensor([1])},
    ]
    assigned = assign_batch(cells.expand(3, 2, 4), scores, points, targets)
    assert assigned.images.tolist() == [0, 0, 2]
    assert assigned.points.tolist() == [0, 1, 1]
    assert assigned.objects.tolist() == [0, 1, 2]
    assert assigned.quality.tolist() == [1.0, 1.0, 1.0]  # all boxes are exact
    assert assign_batch(cells[None], scores[:1], points, targets[1:2]).quality.shape == (0,)
