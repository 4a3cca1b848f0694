"""What runs in threads: segmenting slices, and counting polygons. Nothing here touches the viewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from napari_tcl.export import AnnotatedImage, regions_of
from napari_tcl.model_cache import Engine, ModelChoice
from napari_tcl.slices import Index, SliceReader
from napari_tcl.widget.tasks import Reporter
from tcl_core.segmentation.session import ImageSession, Progress
from tcl_core.segmentation.specks import MinArea, without_specks
from tcl_core.types import Region, Segmentation
from tcl_core.vocabulary import Vocabulary

__all__ = ["PolygonRun", "SegmentRun", "SliceDone", "Step"]


_TEXTS = {
    "encode": "encoding the image",
    "prompts": "embedding the prompts",
    "names": "embedding background names (once per model)",
    "scores": "finding labels",
}


@dataclass(frozen=True)
class Step:
    """News for the progress bar: a sentence, and a share from 0 to 1, or ``None`` where it is not known."""

    text: str
    share: float | None = None


@dataclass(frozen=True)
class SliceDone:
    """A slice was segmented."""

    index: Index
    session: ImageSession
    found: Segmentation


@dataclass(frozen=True)
class SegmentRun:
    """Segments slices one after the other and tells of each as it is done.

    Attributes:
        engine: the window's model and images.
        choice: of the model.
        reader: of the slices.
        indices: which of them.
        vocabulary: the labels.
        min_area: pieces of fewer pixels join their surroundings.
    """

    engine: Engine
    choice: ModelChoice
    reader: SliceReader
    indices: Sequence[Index]
    vocabulary: Vocabulary
    min_area: MinArea = "auto"

    def __call__(self, reporter: Reporter) -> int:
        """Do the work; returns the number of slices."""
        reporter.tell(Step(f"loading the model {self.choice.model}"))
        self.engine.segmenter(self.choice)
        for number, index in enumerate(self.indices):
            where = f"slice {number + 1} of {len(self.indices)}: " if len(self.indices) > 1 else ""
            reporter.tell(Step(f"{where}reading the image"))
            session = self.engine.session(self.choice, self.reader.read(index))
            found = session.segment(self.vocabulary, partial(_tell, reporter, where))
            found = without_specks(found, session.segmenter.model, self.min_area)
            reporter.tell(SliceDone(index, session, found))
        return len(self.indices)


def _tell(reporter: Reporter, where: str, progress: Progress) -> None:
    reporter.tell(Step(f"{where}{_TEXTS[progress.step]}", progress.done / max(progress.total, 1)))


@dataclass(frozen=True)
class PolygonRun:
    """Makes polygons of a slice's labels.

    Attributes:
        image: the labels.
        vocabulary: what they are called.
        tolerance: of the polygons, in pixels.
    """

    image: AnnotatedImage
    vocabulary: Vocabulary
    tolerance: float

    def __call__(self, reporter: Reporter) -> list[Region]:
        """Do the work; returns the regions."""
        return regions_of(self.image, self.vocabulary, self.tolerance)
