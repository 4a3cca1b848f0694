"""What runs in threads: segmenting slices, and counting polygons. Nothing here touches the viewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from napari_tcl.export import AnnotatedImage, regions_of
from napari_tcl.model_cache import Engine, ModelChoice
from napari_tcl.slices import Index, SliceReader
from napari_tcl.widget.tasks import Reporter
from tcl_core.segmentation.session import ImageSession, Progress
from tcl_core.segmentation.specks import MinArea, without_specks
from tcl_core.types import Region, Segmentation
from tcl_core.vocabulary import Vocabulary

__all__ = ["PolygonRun", "RelabelRun", "SegmentRun", "SliceDone", "Step"]


_TEXTS = {
    "encode": "encoding the image",
    "prompts": "embedding the prompts",
    "names": "embedding background names (once per model)",
    "scores": "finding labels",
}


_PARTS = {_TEXTS["encode"]: (0.0, 0.8), _TEXTS["scores"]: (0.8, 0.2)}
"""Which part of a slice's work a step is: where it begins, and how much it is."""


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
            whole = _Whole(reporter, number, len(self.indices))
            whole.tell("reading the image")
            session = self.engine.session(self.choice, self.reader.read(index))
            found = session.segment(self.vocabulary, whole)
            found = without_specks(found, session.segmenter.model, self.min_area)
            reporter.tell(SliceDone(index, session, found))
        return len(self.indices)


@dataclass(frozen=True)
class _Whole:
    """Tells about a slice's steps as parts of the whole work."""

    reporter: Reporter
    number: int
    count: int

    def tell(self, text: str, share: float | None = None) -> None:
        if self.count == 1:
            self.reporter.tell(Step(text, share))
        else:
            where = f"slice {self.number + 1} of {self.count}: "
            self.reporter.tell(
                Step(where + text, self.number / self.count if share is None else self._share(text, share))
            )

    def _share(self, text: str, share: float) -> float:
        # Within a slice the network takes most of the time, and the bar shall not run back when a step follows.
        before, width = _PARTS.get(text, (0.0, 0.0))
        return (self.number + before + width * share) / self.count

    def __call__(self, progress: Progress) -> None:
        self.tell(_TEXTS[progress.step], progress.done / max(progress.total, 1))


@dataclass(frozen=True)
class RelabelRun:
    """Decides slices anew with other thresholds, the first one first, and tells of each; the network does not run.

    Attributes:
        sessions: of the slices, all with scores of the vocabulary.
        vocabulary: the labels.
        min_area: pieces of fewer pixels join their surroundings.
    """

    sessions: Sequence[tuple[Index, ImageSession]]
    vocabulary: Vocabulary
    min_area: MinArea = "auto"

    def __call__(self, reporter: Reporter) -> int:
        """Do the work; returns the number of slices."""
        for index, session in self.sessions:
            found = without_specks(session.segment(self.vocabulary), session.segmenter.model, self.min_area)
            reporter.tell(SliceDone(index, session, found))
        return len(self.sessions)


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
