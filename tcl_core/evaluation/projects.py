"""Score a model on projects with a few labels, while the images contain many other things."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from tcl_core.evaluation.miou import MeanIoU
from tcl_core.playground import CLASS_NAMES, KINDS, SYNONYMS, draw_scene, scene_rng
from tcl_core.segmentation.background_names import NEAR
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession
from tcl_core.vocabulary import Label, Vocabulary

__all__ = [
    "PROJECTS",
    "PROJECT_SEED",
    "STEP",
    "VALIDATION_SEED",
    "Project",
    "ProjectRow",
    "draw_project",
    "evaluate_projects",
    "format_projects",
    "projects_to_json",
    "mistaken_for_synonyms",
    "synonyms_and_others",
]

PROJECT_SEED = 19_204
"""Of the scenes and label draws of the published table; nothing was chosen on them."""

VALIDATION_SEED = 19_104
"""Of scenes and label draws to make choices with."""

STEP = 0.05
"""By how much the height of the background is moved."""


@dataclass(frozen=True)
class Project:
    """The labels of a project.

    Attributes:
        kinds: number of kinds of objects.
        stuff: number of kinds of stuff.
    """

    kinds: int
    stuff: int = 0

    def __str__(self) -> str:
        return f"{self.kinds} kinds" + (f" + {self.stuff} stuff" if self.stuff else "")


PROJECTS = (Project(3), Project(5), Project(10), Project(6, 4))
"""The rows of the table."""


@dataclass(frozen=True)
class ProjectRow:
    """Mean IoU of a kind of project in percent, over the labels that occur, averaged over draws of labels.

    Attributes:
        project: what it asks for.
        mean: with the model's names of the background.
        worst: the lowest of the draws.
        lower: mean with the background lower by `STEP`.
        higher: mean with the background higher by `STEP`.
        without: mean without names of the background.
        draws: of each draw, with names.
        draws_without: of each draw, without names.
    """

    project: str
    mean: float
    worst: float
    lower: float
    higher: float
    without: float
    draws: tuple[float, ...]
    draws_without: tuple[float, ...]


def draw_project(project: Project, seed: int, number: int) -> tuple[str, ...]:
    """The labels of one draw, the same every time.

    Example:
        >>> len(draw_project(Project(6, 4), seed=1, number=0))
        10
    """
    rng = np.random.default_rng([seed, project.kinds, project.stuff, number])
    kinds = rng.choice(len(KINDS), project.kinds, replace=False)
    stuff = len(KINDS) + rng.choice(len(CLASS_NAMES) - len(KINDS), project.stuff, replace=False)
    return tuple(CLASS_NAMES[index] for index in sorted((*kinds.tolist(), *stuff.tolist())))


def evaluate_projects(
    segmenter: Segmenter,
    scenes: int = 300,
    draws: int = 10,
    seed: int = PROJECT_SEED,
    background_threshold: float | None = None,
    projects: Sequence[Project] = PROJECTS,
    progress: Callable[[int, int], object] | None = None,
) -> list[ProjectRow]:
    """Score a model at its defaults on playground projects; everything that has no label is background and counts.

    Args:
        segmenter: the model and its settings.
        scenes: number of scenes, the same for all projects.
        draws: number of vocabularies of each kind of project.
        seed: of scenes and draws.
        background_threshold: height of the background in the middle; ``None`` for the model's.
        projects: what they ask for.
        progress: called with the scenes done and the total.

    Returns:
        One row per project.
    """
    middle = segmenter.background_threshold if background_threshold is None else background_threshold
    heights = [None] if middle is None else [middle, max(0.0, middle - STEP), min(1.0, middle + STEP)]
    variants = [(height, None) for height in heights] + [(middle, ())]
    chosen = {(project, number): draw_project(project, seed, number) for project in projects for number in range(draws)}
    metrics = {(*key, place): MeanIoU(len(labels), ignore=-1) for key, labels in chosen.items() for place in range(4)}
    for index in range(scenes):
        scene = draw_scene(scene_rng(seed, index), combinations="all")
        session = ImageSession(segmenter, scene.image)
        for key, names in chosen.items():
            numbers = np.zeros(len(CLASS_NAMES) + 1, np.int64)
            for label, name in enumerate(names, start=1):
                numbers[CLASS_NAMES.index(name) + 1] = label
            truth = numbers[scene.label_map]
            labels = tuple(Label(name, (name,)) for name in names)
            for place, (height, competing) in enumerate(variants):
                vocabulary = Vocabulary(labels, background_threshold=height, background_names=competing)
                metrics[(*key, place)].update(truth, session.segment(vocabulary).label_map)
        if progress is not None:
            progress(index + 1, scenes)
    return [_row(project, draws, len(variants), metrics) for project in projects]


def _row(project: Project, draws: int, variants: int, metrics: dict[tuple[Project, int, int], MeanIoU]) -> ProjectRow:
    found = np.array(
        [[100 * metrics[project, number, place].compute() for number in range(draws)] for place in range(variants)]
    )
    # In a few scenes none of a draw's labels may occur.
    means = np.nanmean(found, axis=1).tolist()
    lower, higher = means[1:3] if variants == 4 else (means[0], means[0])
    draws_with, draws_without = tuple(found[0].tolist()), tuple(found[-1].tolist())
    return ProjectRow(
        str(project), means[0], float(np.nanmin(found[0])), lower, higher, means[-1], draws_with, draws_without
    )


def synonyms_and_others(segmenter: Segmenter) -> tuple[float, float]:
    """How near the names of the playground are to each other, which is what the limit of names was chosen by.

    Returns:
        The lowest nearness of two words for one thing, and the highest of two different things.
    """
    others = [word for words in SYNONYMS.values() for word in words]
    owners = [name for name, words in SYNONYMS.items() for _ in words]
    found = segmenter.nearness(CLASS_NAMES, [*others, *CLASS_NAMES])
    assert found is not None
    same = np.array([[name == owner for owner in (*owners, *CLASS_NAMES)] for name in CLASS_NAMES])
    values = found.cpu().numpy()
    return float(values[:, : len(others)][same[:, : len(others)]].min()), float(values[~same].max())


def mistaken_for_synonyms(segmenter: Segmenter) -> list[tuple[str, str, float]]:
    """Pairs of different things whose names are as near as synonyms, so that they do not compete with each other.

    Returns:
        Two names and their nearness, the nearest pair first.
    """
    found = segmenter.nearness(CLASS_NAMES, CLASS_NAMES)
    assert found is not None
    pairs = [(one, other, float(found[i, j])) for (i, one), (j, other) in combinations(enumerate(CLASS_NAMES), 2)]
    return sorted((pair for pair in pairs if pair[2] >= NEAR), key=lambda pair: -pair[2])


def format_projects(rows: Sequence[ProjectRow]) -> str:
    """The table as Markdown, with the mean over the projects last."""
    lines = [
        f"| labels asked for | mean IoU | worst draw | background {STEP} lower | {STEP} higher | without names |",
        "|---|---|---|---|---|---|",
    ]
    figures = [(row.mean, row.worst, row.lower, row.higher, row.without) for row in rows]
    for name, values in zip(
        [*(row.project for row in rows), "mean"], [*figures, np.mean(figures, axis=0).tolist()], strict=True
    ):
        lines.append(f"| {name} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
    return "\n".join(lines)


def projects_to_json(rows: Sequence[ProjectRow]) -> str:
    """The table as JSON, with every draw."""
    return json.dumps([asdict(row) for row in rows], indent=1)
