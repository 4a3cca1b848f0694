"""Scores of projects that ask for a few labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tcl_core.cli.main import run
from tcl_core.evaluation.projects import (
    PROJECTS,
    Project,
    draw_project,
    evaluate_projects,
    mistaken_for_synonyms,
    synonyms_and_others,
)
from tcl_core.models import load_model
from tcl_core.playground import CLASS_NAMES, KINDS, draw_scene, scene_rng
from tcl_core.segmentation.background_names import NEAR
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(load_model("playground", device="cpu"))


def test_draws() -> None:
    for project in PROJECTS:
        drawn = [draw_project(project, 5, number) for number in range(4)]
        assert len(set(drawn)) == 4 and drawn == [draw_project(project, 5, number) for number in range(4)]
        for labels in drawn:
            assert len(set(labels)) == project.kinds + project.stuff
            assert sum(label in KINDS for label in labels) == project.kinds


@pytest.mark.slow
def test_rows_are_the_mean_over_draws(segmenter: Segmenter) -> None:
    """Against intersections and unions that are counted anew."""
    project, seed, scenes, draws = Project(8, 2), 17, 3, 2
    (row,) = evaluate_projects(segmenter, scenes, draws, seed, 0.4, [project])

    def scored(number: int, height: float, names: tuple[str, ...] | None) -> float:
        labels = draw_project(project, seed, number)
        vocabulary = Vocabulary.from_options(labels, background_threshold=height, background_names=names)
        overlaps, unions, there = np.zeros(10), np.zeros(10), np.zeros(10)
        for index in range(scenes):
            scene = draw_scene(scene_rng(seed, index), combinations="all")
            found = segmenter.segment_image(scene.image, vocabulary).label_map
            for place, name in enumerate(labels):
                true, said = scene.label_map == CLASS_NAMES.index(name) + 1, found == place + 1
                overlaps[place] += (true & said).sum()
                unions[place] += (true | said).sum()
                there[place] += true.sum()
        return float((100 * overlaps[there > 0] / unions[there > 0]).mean())

    def mean(height: float, names: tuple[str, ...] | None) -> float:
        return float(np.mean([scored(number, height, names) for number in range(draws)]))

    assert row.project == "8 kinds + 2 stuff"
    assert row.draws == pytest.approx([scored(number, 0.4, None) for number in range(draws)], abs=0.05)
    assert (row.mean, row.worst) == pytest.approx((np.mean(row.draws), min(row.draws)))
    assert (row.lower, row.higher, row.without) == pytest.approx(
        (mean(0.35, None), mean(0.45, None), mean(0.4, ())), abs=0.05
    )


def test_the_limit_of_nearness_lies_between_synonyms_and_others(segmenter: Segmenter) -> None:
    synonyms, others = synonyms_and_others(segmenter)
    mistaken = mistaken_for_synonyms(segmenter)
    assert NEAR < synonyms - 0.05
    # Of 1,431 pairs. The embedded CLIP hardly tells the texts of these two backgrounds apart.
    assert [pair[:2] for pair in mistaken] == [("snow", "marble")] and mistaken[0][2] == pytest.approx(others)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.json"
    assert run(["playground", "projects", "--scenes", "1", "--draws", "1", "--json", str(path)]) == 0
    table = json.loads(path.read_text())
    assert [row["project"] for row in table["rows"]] == [str(project) for project in PROJECTS]
    assert table["background_threshold"] == 0.25 and f"| {PROJECTS[0]} |" in capsys.readouterr().out
