"""Many images: pre-label all of them, stop and go on, correct them one by one, write one COCO file.

The work lies in a folder of its own: ``job.json`` with the labels and settings, and one file of masks for each image
that is done. A file is replaced as a whole, so whatever happens, each image is either done or not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_tcl.export import AnnotatedImage, export_coco
from tcl_core.errors import ImageError, SettingsError, VocabularyError
from tcl_core.export.coco import Geometry
from tcl_core.export.names import is_text
from tcl_core.images import image_size, load_image
from tcl_core.jobs.inputs import ImageList, find_images
from tcl_core.jobs.pipeline import in_order
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession, ProgressCallback
from tcl_core.segmentation.specks import MinArea, without_specks
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Vocabulary

__all__ = ["FolderJob", "ImageState", "JobChangedError", "beside"]

_FORMAT = 1
_JOB_FILE = "job.json"
_SCORE_STEPS = 255

State = Literal["waiting", "labeled", "corrected", "failed"]


@dataclass(frozen=True)
class ImageState:
    """Where an image of the job stands.

    Attributes:
        file_name: relative to the job's root.
        state: ``"waiting"``, ``"labeled"`` by the model, ``"corrected"`` by a person, or ``"failed"``.
        reason: why it failed.
    """

    file_name: str
    state: State
    reason: str = ""


class JobChangedError(SettingsError):
    """The folder for the masks holds a job with other labels or settings.

    Args:
        text: what differs.
        vocabulary: the labels of the job in the folder, if only they differ.
    """

    def __init__(self, text: str, vocabulary: Vocabulary | None = None) -> None:
        super().__init__(text)
        self.vocabulary = vocabulary


class FolderJob:
    """A job over many images that can be stopped at any moment and taken up again.

    Args:
        images: from `tcl_core.jobs.inputs.find_images`.
        vocabulary: the labels.
        settings: what else the masks depend on (`Segmenter.settings`).
        work: folder for the masks; made if it is missing, taken up if it holds the same job.

    Raises:
        JobChangedError: the folder holds a job with other labels or settings.
        SettingsError: the folder holds something else, or cannot be written to.

    Example::

        segmenter = Segmenter(load_model("playground"))
        job = FolderJob.open("photos", Vocabulary.from_file("labels.yaml"), segmenter.settings(), "photos.masks")
        for state in job.run(segmenter):
            print(state.file_name, state.state)
        job.export("labels.json")
    """

    def __init__(
        self, images: ImageList, vocabulary: Vocabulary, settings: Mapping[str, Any], work: str | os.PathLike[str]
    ) -> None:
        self.images = images
        self.vocabulary = vocabulary
        self.settings = dict(settings)
        self.work = Path(work)
        self._failed: dict[str, str] = {}
        self._take_up()

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        vocabulary: Vocabulary,
        settings: Mapping[str, Any],
        work: str | os.PathLike[str],
    ) -> FolderJob:
        """A job over a folder and its sub-folders (or one image, or a pattern).

        Raises:
            ImageError: there is no image.
            SettingsError: see the class.
        """
        images = find_images([os.fspath(folder)], exclude=[Path(work)])
        return cls(images, vocabulary, settings, work)

    def states(self) -> list[ImageState]:
        """Every image of the job and where it stands."""
        return [self.state(name) for name in self.images.file_names]

    def state(self, file_name: str) -> ImageState:
        """Where one image stands."""
        path = self._mask_path(file_name)
        if path.is_file():
            try:
                (corrected,) = _read_arrays(path, "corrected")
            except (FileNotFoundError, SettingsError):
                return ImageState(file_name, "waiting")
            return ImageState(file_name, "corrected" if corrected.all() else "labeled")
        if file_name in self._failed:
            return ImageState(file_name, "failed", self._failed[file_name])
        return ImageState(file_name, "waiting")

    def run(
        self,
        segmenter: Segmenter,
        on_progress: Callable[[str], ProgressCallback] | None = None,
        *,
        min_area: MinArea = "auto",
    ) -> Iterator[ImageState]:
        """Label what is waiting, image by image; stopping between two images costs nothing.

        Args:
            segmenter: with the job's settings.
            on_progress: given a file name, what to tell about the steps of its work.
            min_area: pieces of fewer pixels join their surroundings; ``"auto"`` takes what follows from the model's
                patch, 0 keeps all.

        Yields:
            The new state of each image; an image that cannot be read costs only itself.

        Raises:
            SettingsError: the segmenter has other settings.
            VocabularyError: the model does not know a word of a prompt.
        """
        if segmenter.settings() != self.settings:
            raise SettingsError(f"{self.work}: was started with another model or other settings; choose another folder")
        segmenter.embed_prompts([prompt for _, prompt in self.vocabulary.prompts], self.vocabulary.templates)
        pool = ThreadPoolExecutor(1)
        waiting = (name for name in self.images.file_names if not self._is_done(name))
        try:
            # The next image is decoded while the model looks at this one.
            for name, image in in_order(waiting, lambda name: pool.submit(self._read, name), ahead=2):
                # A person may have drawn it meanwhile.
                if self._is_done(name):
                    continue
                try:
                    session = ImageSession(segmenter, image.result())
                    found = session.segment(self.vocabulary, None if on_progress is None else on_progress(name))
                    found = without_specks(found, segmenter.model, min_area)
                    self.save(name, found.label_map, found.score_map, corrected=False)
                    self._failed.pop(name, None)
                except ImageError as error:
                    self._failed[name] = str(error)
                yield self.state(name)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _is_done(self, file_name: str) -> bool:
        return self.state(file_name).state in ("labeled", "corrected")

    def _read(self, file_name: str) -> NDArray[np.uint8]:
        if not is_text(file_name):
            raise ImageError("the file name is not valid UTF-8, so it cannot be written to COCO; rename the file")
        return load_image(self.images.root / file_name)

    def load(self, file_name: str) -> Segmentation:
        """The masks of an image that is done.

        Raises:
            SettingsError: there are none, or they are damaged or do not fit the image.
        """
        path = self._mask_path(file_name)
        size = image_size(self.images.root / file_name)
        try:
            label_map, scores = _read_arrays(path, "label_map", "scores")
        except FileNotFoundError:
            raise SettingsError(f"{file_name}: is not labeled yet; run the job first") from None
        if label_map.shape != size or scores.shape != size or label_map.max() > len(self.vocabulary.labels):
            raise SettingsError(f"{path}: does not fit the image {file_name}; delete it and run the job again")
        score_map: NDArray[np.float32] = scores.astype(np.float32) / np.float32(_SCORE_STEPS)
        return Segmentation(label_map.astype(np.int32), score_map, self.vocabulary)

    def save(
        self, file_name: str, label_map: NDArray[Any], score_map: NDArray[np.float32], *, corrected: bool = True
    ) -> None:
        """Keep the masks of an image, in place of older ones.

        Args:
            file_name: of the job.
            label_map: integers ``[H, W]``; 0 is nothing, k is label k of the vocabulary counted from 1.
            score_map: float32 ``[H, W]`` in ``[0, 1]``, kept in steps of 1/255.
            corrected: whether a person went over it.

        Raises:
            SettingsError: the name is not of this job, or the disc refuses.
        """
        if file_name not in self.images.file_names:
            raise SettingsError(f"{file_name}: is not an image of this job")
        path = self._mask_path(file_name)
        part = path.with_suffix(".part")
        try:
            with open(part, "wb") as file:
                np.savez_compressed(
                    file,
                    label_map=label_map.astype(np.uint16),
                    scores=np.rint(np.clip(score_map, 0, 1) * _SCORE_STEPS).astype(np.uint8),
                    corrected=np.bool_(corrected),
                )
            os.replace(part, path)
        except OSError as error:
            raise SettingsError(f"{path}: cannot be written ({error.strerror})") from error
        finally:
            part.unlink(missing_ok=True)

    def export(
        self, path: str | os.PathLike[str], *, geometry: Geometry = "polygon", tolerance: str | float = "default"
    ) -> int:
        """Write a COCO file of all images that are done.

        Args:
            path: the file, replaced if it is there.
            geometry: see `napari_tcl.export.export_coco`.
            tolerance: of the polygons.

        Returns:
            Number of images in the file.

        Raises:
            TclError: the file cannot be written, or masks are damaged.
        """
        done = [state.file_name for state in self.states() if state.state in ("labeled", "corrected")]

        def annotated(name: str) -> AnnotatedImage:
            found = self.load(name)
            return AnnotatedImage(name, found.label_map, found.score_map)

        export_coco(path, map(annotated, done), self.vocabulary, self.settings, geometry=geometry, tolerance=tolerance)
        return len(done)

    def _mask_path(self, file_name: str) -> Path:
        # Sub-folders and names that differ only by case must not meet, on any file system.
        digest = hashlib.sha256(file_name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return self.work / f"{digest}.npz"

    def _take_up(self) -> None:
        wanted = json.loads(
            json.dumps({"job": _FORMAT, "vocabulary": self.vocabulary.to_dict(), "settings": self.settings})
        )
        path = self.work / _JOB_FILE
        try:
            if path.exists():
                found = json.loads(path.read_text(encoding="utf-8"))
            else:
                if self.work.is_dir() and any(self.work.iterdir()):
                    raise SettingsError(f"{self.work}: contains other files; choose an empty folder for the masks")
                self.work.mkdir(parents=True, exist_ok=True)
                part = path.with_suffix(".part")
                part.write_text(json.dumps(wanted), encoding="utf-8")
                os.replace(part, path)
                return
        except OSError as error:
            raise SettingsError(f"{self.work}: cannot be used for the masks ({error.strerror or error})") from error
        except ValueError as error:
            raise SettingsError(f"{path}: is damaged; choose another folder for the masks") from error
        if found == wanted:
            return
        held = found if isinstance(found, dict) else {}
        if held.get("job") != _FORMAT:
            raise SettingsError(f"{self.work}: was made by another version; choose another folder for the masks")
        parts = []
        if held.get("settings") != wanted["settings"]:
            parts.append(f"other settings ({_changed_settings(held.get('settings'), self.settings)})")
        before = None
        if held.get("vocabulary") != wanted["vocabulary"]:
            try:
                before = Vocabulary.from_dict(held["vocabulary"])
            except (KeyError, VocabularyError) as error:
                raise SettingsError(f"{path}: is damaged; choose another folder for the masks") from error
            parts.append(f"other labels ({_changed_labels(before, self.vocabulary)})")
        raise JobChangedError(
            f"{self.work}: was started with {' and '.join(parts)}; restore them, or choose another folder",
            before if len(parts) == 1 else None,
        )


def beside(folder: Path, kind: str) -> Path:
    """Where files of a kind that belong to a folder of images lie: next to it, as ``FOLDER.KIND``.

    Raises:
        SettingsError: nothing lies next to the folder.

    Example:
        >>> beside(Path("/data/photos"), "masks").as_posix()
        '/data/photos.masks'
    """
    whole = Path(os.path.abspath(folder))
    if not whole.name:
        raise SettingsError(f"{folder}: masks cannot be stored next to it; choose a folder inside it")
    return whole.with_name(f"{whole.name}.{kind}")


def _read_arrays(path: Path, *names: str) -> list[NDArray[Any]]:
    """Arrays of unsigned integers or truth values in a file of masks.

    Raises:
        FileNotFoundError: there is no such file.
        SettingsError: it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as kept:
            found = [kept[name] for name in names]
        if any(array.dtype.kind not in "bu" for array in found):
            raise ValueError
    except (FileNotFoundError, MemoryError):
        raise
    # Damage surfaces as many kinds of errors, of zipfile, zlib, tokenize and NumPy, depending on where it is.
    except Exception as error:
        raise SettingsError(f"{path}: is damaged; delete it and run the job again") from error
    return found


def _changed_settings(before: object, now: Mapping[str, Any]) -> str:
    held = before if isinstance(before, Mapping) else {}
    plain = json.loads(json.dumps(now))
    return ", ".join(sorted(key for key in {*held, *plain} if held.get(key) != plain.get(key)))


def _changed_labels(before: Vocabulary, now: Vocabulary) -> str:
    old = {label.name: label for label in before.labels}
    new = {label.name: label for label in now.labels}
    gone, added = [name for name in old if name not in new], [name for name in new if name not in old]
    changed = [name for name in old if name in new and old[name] != new[name]]
    listed = (("without", added), ("with", gone), ("other prompts, color or threshold of", changed))
    parts = [f"{what} {', '.join(names)}" for what, names in listed if names]
    if not parts:
        parts = ["another order" if list(old) != list(new) else "another background or template"]
    return "; ".join(parts)
