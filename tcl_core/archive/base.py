"""The model that embeds an archive and finds references in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from tcl_core.errors import SettingsError
from tcl_core.methods.reco import ReCo
from tcl_core.models import Model, load_model
from tcl_core.models.image_encoders import FoundEncoder, find_image_encoder, load_image_encoder
from tcl_core.models.registry import split_method
from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = ["Base", "load_base"]


@dataclass(frozen=True, eq=False)
class Base:
    """A CLIP with its preprocessing, and a method without references on it.

    Attributes:
        name: of the model whose CLIP it is.
        model: that model under MaskCLIP, which learns nothing.
        method: the method.
        encoder: the image encoder beside the CLIP; ``None`` for none.
    """

    name: str
    model: Model
    method: ReCo
    encoder: FoundEncoder | None

    @property
    def embedded_side(self) -> int:
        """Side of the squares that are embedded for retrieval: that of the CLIP's training."""
        return self.in_patches(self.model.preprocess.window)

    @property
    def fitted_side(self) -> int:
        """Side of the squares in which references are found: the working length of segmentation."""
        return self.in_patches(self.model.preprocess.short_side)

    def in_patches(self, side: int) -> int:
        """The greatest number of whole patches that a side holds, in pixels."""
        patch = self.method.clip.patch_size
        return max(1, side // patch) * patch


def load_base(name: str, device: str = "auto", precision: str = "auto", encoder: str = "clip") -> Base:
    """Load what embeds and looks at images.

    Args:
        name: of a model with a CLIP, with or without a method before it; only its CLIP is used.
        device: see `tcl_core.devices.select_device`.
        precision: see `tcl_core.devices.select_precision`; not int8.
        encoder: see `tcl_core.models.image_encoders.find_image_encoder`.

    Raises:
        WeightsError: there is no such model or encoder, or it cannot be had.
        SettingsError: a setting is not available, or the model has no CLIP of its own.
    """
    if precision == "int8":
        raise SettingsError(
            "precision int8 is measured for segmentation alone; use another precision for archives and references"
        )
    plain = split_method(name)[1]
    model = load_model(f"maskclip:{plain}", device=device, precision=precision)
    if lender := model.metadata.clip.get("model"):
        # References would borrow the CLIP of a file that has none.
        raise SettingsError(f"--model {plain}: borrows the CLIP of {lender}; pass --model {lender}")
    found = find_image_encoder(encoder)
    image = (
        None
        if found is None
        else load_image_encoder(found.entry(), model.preprocess, "the references").to(model.device)
    )
    clip = cast(FrozenClip, model.method.towers["clip"])
    return Base(plain, model, ReCo(clip, image).to(model.device).eval().requires_grad_(False), found)
