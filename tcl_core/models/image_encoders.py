"""Image encoders beside a CLIP: DINO and DeiT of timm, downloaded and pinned as other weights, or the user's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tcl_core.errors import SettingsError, WeightsError
from tcl_core.models.download import check_file, fetch_file
from tcl_core.models.manifest import load_manifest
from tcl_core.models.metadata import Preprocess
from tcl_core.models.paths import download_folder, file_sha256
from tcl_core.models.tensor_files import safetensors_entries, unchanged
from tcl_core.towers.timm_vit import TimmVit, build_timm_vit

__all__ = ["ENCODERS", "FoundEncoder", "find_image_encoder", "load_image_encoder"]

ENCODERS = {
    "dino": ("vit_small_patch16_224.dino", "dino-vit-s16"),
    "deit": ("deit_small_patch16_224.fb_in1k", "deit-s16"),
}
"""Names of timm and of the manifest's files, by the name that a user writes."""


@dataclass(frozen=True)
class FoundEncoder:
    """An image encoder's weights on this disk.

    Attributes:
        timm: name of the architecture.
        file: name of the manifest's file, or a path.
        path: the file.
        sha256: of the file, in hexadecimal.
    """

    timm: str
    file: str
    path: Path
    sha256: str

    def entry(self) -> dict[str, str]:
        """The ``image_encoder`` entry of a model file."""
        return {"timm": self.timm, "file": self.file, "sha256": self.sha256}


def find_image_encoder(name: str) -> FoundEncoder | None:
    """The encoder that a user names, downloaded if need be.

    Args:
        name: ``clip`` for none beside the CLIP, ``auto`` for DINO if its weights were downloaded before and else none,
            ``dino``, ``deit``, or ``ARCHITECTURE=FILE`` for a vision transformer of timm and its weights.

    Raises:
        SettingsError: there is no such encoder.
        WeightsError: the weights cannot be had, or are not as they were first downloaded.
    """
    if name == "clip":
        return None
    architecture, equals, own = name.partition("=")
    if equals:
        try:
            return FoundEncoder(architecture, own, Path(own), file_sha256(own))
        except OSError as error:
            raise WeightsError(
                f"{own}: cannot be read: {error.strerror or error}; give the path of the weights"
            ) from error
    chosen = "dino" if name == "auto" else name
    if chosen not in ENCODERS:
        known = ", ".join(["auto", "clip", *ENCODERS])
        raise SettingsError(f"there is no image encoder {name!r}; give {known}, or ARCHITECTURE=FILE")
    timm_name, key = ENCODERS[chosen]
    file = load_manifest().files[key]
    path = download_folder() / file.filename
    if not path.is_file():
        if name == "auto":
            return None
        fetch_file(file, progress=True)
    return FoundEncoder(timm_name, key, path, check_file(file))


def load_image_encoder(entry: Mapping[str, Any], preprocess: Preprocess, what: str) -> TimmVit:
    """The encoder that a model file names.

    Args:
        entry: ``image_encoder`` of the model file.
        preprocess: of the model, whose images the encoder will be given.
        what: the model file, for messages.

    Raises:
        WeightsError: the weights are missing, damaged or others than those the model was made with.
    """
    known = load_manifest().files.get(str(entry["file"]))
    path = Path(str(entry["file"])) if known is None else download_folder() / known.filename
    if known is not None and not path.is_file():
        raise WeightsError(
            f"{what}: its image encoder {entry['timm']} is missing; run 'tcl-annotate models fetch {entry['file']}'"
        )
    try:
        # What is loaded is what was checked.
        with unchanged(path):
            sha256 = file_sha256(path) if known is None else check_file(known)
            if sha256 != entry["sha256"]:
                raise WeightsError(
                    f"{what}: was made with an image encoder with SHA-256 {entry['sha256']}, but {path} has {sha256}; "
                    "use the same weights, or make the references again"
                )
            tensors = dict(safetensors_entries(path))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read as safetensors ({error}); it is needed by {what}") from error
    return build_timm_vit(str(entry["timm"]), tensors, str(path), preprocess.mean, preprocess.std)
