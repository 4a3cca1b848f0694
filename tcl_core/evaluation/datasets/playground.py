"""Scenes of the playground as a data set: drawn when needed, always the same."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl_core.errors import DataSetError
from tcl_core.evaluation.datasets.base import ClassList, DataSet
from tcl_core.evaluation.playground import Split, held_out_scene
from tcl_core.playground import CLASS_NAMES, Scene
from tcl_core.playground.scenes import Combinations
from tcl_core.vocabulary import Label, Vocabulary

__all__ = ["SCENES", "PlaygroundDataSet"]

SCENES = 500
"""Number of scenes in a split."""

_SPLITS: dict[str, Combinations] = {"seen": "seen", "held-out": "held-out"}


@lru_cache(maxsize=8)
def _scene(combinations: Combinations, index: int, scenes: Split) -> Scene:
    """Image and ground truth are requested one after the other."""
    return held_out_scene(combinations, index, scenes)


class PlaygroundDataSet(DataSet):
    """Scenes that were not used in training. All classes of the toy world compete; plain backdrops are ignored.

    Args:
        split: ``"seen"`` has combinations of kind and color that occur in training, ``"held-out"`` only combinations
            that do not.
        scenes: those of the published table, or others to make choices with.

    Raises:
        DataSetError: there is no such split.
    """

    name = "playground"

    def __init__(self, split: str, scenes: Split = "test") -> None:
        if split not in _SPLITS:
            raise DataSetError(f"--split {split}: the playground has the splits {' and '.join(_SPLITS)}")
        self.split, self._scenes = split, scenes
        self.classes = ClassList.of(Vocabulary(tuple(Label(name) for name in CLASS_NAMES), background=False))
        self.images = tuple(f"scene-{index:04}" for index in range(SCENES))
        self.about: dict[str, Any] = {"title": f"playground, {len(CLASS_NAMES)} classes"}

    def check(self, index: int) -> None:
        """Do nothing, because scenes are generated."""

    def check_image(self, index: int) -> None:
        """Do nothing, because scenes are generated."""

    def image(self, index: int) -> NDArray[np.uint8]:
        """See `DataSet.image`."""
        return _scene(_SPLITS[self.split], index, self._scenes).image

    def truth(self, index: int) -> NDArray[np.int16]:
        """See `DataSet.truth`."""
        return self.classes.from_label_map(_scene(_SPLITS[self.split], index, self._scenes).label_map)
