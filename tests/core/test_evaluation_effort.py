"""The effort of correcting, on maps whose answer can be counted by hand, and what must hold on any."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shapely import Polygon, box
from skimage.measure import label, regionprops

from tcl_core.evaluation.effort import GOAL, Effort, correction_effort, drawn_polygon


def canvas(*boxes: tuple[int, int, int, int], value: int = 1, size: tuple[int, int] = (60, 60)) -> NDArray[np.int64]:
    """Boxes ``(top, bottom, left, right)`` of a class on background."""
    label_map = np.zeros(size, int)
    for top, bottom, left, right in boxes:
        label_map[top:bottom, left:right] = value
    return label_map


SQUARE = canvas((10, 40, 10, 40))


def test_what_is_right_costs_nothing() -> None:
    effort = correction_effort(SQUARE, SQUARE, 1)
    assert effort == Effort(anew_vertices=4, anew_regions=1)
    # 28 of 30 rows are an IoU above the goal.
    assert correction_effort(SQUARE, canvas((12, 40, 10, 40)), 1).steps == 0


def test_a_side_that_is_too_short_is_moved_with_its_two_corners() -> None:
    effort = correction_effort(SQUARE, canvas((10, 40, 10, 30)), 1)
    assert effort == Effort(moved=2, anew_vertices=4, anew_regions=1)


def test_only_as_much_is_mended_as_the_goal_asks_for() -> None:
    """Of two sides that are wrong, the one that mends more; what is left is within the goal."""
    effort = correction_effort(SQUARE, canvas((10, 40, 12, 50)), 1)
    assert effort == Effort(moved=2, anew_vertices=4, anew_regions=1)


def test_what_is_missing_is_drawn_and_what_is_too_much_deleted() -> None:
    two = canvas((10, 40, 10, 40), (45, 55, 45, 55))
    assert correction_effort(two, SQUARE, 1) == Effort(added=4, regions_added=1, anew_vertices=8, anew_regions=2)
    assert correction_effort(SQUARE, two, 1) == Effort(regions_deleted=1, anew_vertices=4, anew_regions=1)
    wrong_class = correction_effort(SQUARE, 2 * SQUARE, 1)
    assert wrong_class == Effort(added=4, regions_added=1, regions_deleted=1, anew_vertices=4, anew_regions=1)


def test_a_hopeless_region_is_drawn_anew() -> None:
    comb = canvas(*((10, 50, column, column + 2) for column in range(10, 50, 4)), (48, 50, 10, 50))
    effort = correction_effort(SQUARE, comb, 1)
    assert effort == Effort(added=4, regions_added=1, regions_deleted=1, anew_vertices=4, anew_regions=1)


def test_pixels_that_do_not_count_are_in_no_iou() -> None:
    truth = SQUARE.copy()
    truth[:, 30:40] = -1
    assert correction_effort(truth, canvas((10, 40, 10, 30)), 1).steps == 0
    hidden = canvas((10, 40, 10, 40))
    hidden[truth == -1] = 2
    assert correction_effort(truth, hidden, 1).steps == 0, "a region that nobody judges has not to be deleted"


def test_specks_count_on_neither_side() -> None:
    speck = SQUARE.copy()
    speck[50:52, 50:52] = 1
    assert correction_effort(SQUARE, speck, 1, min_area=5).steps == 0
    assert correction_effort(speck, SQUARE, 1, min_area=5) == Effort(anew_vertices=4, anew_regions=1)


def test_nothing_predicted_costs_as_much_as_drawing_anew() -> None:
    truth = canvas((5, 20, 5, 20), (30, 50, 30, 50))
    effort = correction_effort(truth, np.zeros_like(truth), 1)
    assert effort.steps == effort.steps_anew == 10


@pytest.mark.slow
@settings(max_examples=25)
@given(st.integers(0, 2**31))
def test_on_any_maps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(-1, 3, (6, 6)).repeat(8, axis=0).repeat(8, axis=1)
    prediction = rng.integers(0, 3, (6, 6)).repeat(8, axis=0).repeat(8, axis=1)
    effort = correction_effort(truth, prediction, 0)
    assert min(effort.to_dict().values()) >= 0
    # Deleting all and drawing all anew is always possible.
    predicted = regionprops(label(prediction + 1, background=0, connectivity=1))
    assert effort.steps <= effort.steps_anew + len(predicted)
    assert effort.regions_added <= effort.anew_regions
    assert correction_effort(np.abs(truth), np.abs(truth), 0).steps == 0


@pytest.mark.parametrize("seed", range(5))
def test_drawn_polygons_reach_the_goal_with_few_vertices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    radius = 40 + 6 * np.sin(3 * angles + rng.random()) + rng.normal(0, 0.4, 200)
    outline = Polygon(np.stack([50 + radius * np.cos(angles), 50 + radius * np.sin(angles)], axis=1))
    drawn = drawn_polygon(outline)
    shared = drawn.intersection(outline).area
    assert shared / drawn.union(outline).area >= GOAL
    assert len(drawn.exterior.coords) < 20
    assert drawn_polygon(box(0, 0, 9, 4)).equals(box(0, 0, 9, 4))
