"""A segmenter that can be loaded by the name of a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tcl_core.models import load_model
from tcl_core.models.registry import check_options
from tcl_core.segmentation import segmenter
from tcl_core.segmentation.features import FeatureCache

__all__ = ["Segmenter"]


class Segmenter(segmenter.Segmenter):
    """A model with inference settings: encode an image once, and segment it with any number of vocabularies.

    This is `tcl_core.segmentation.segmenter.Segmenter` with `from_pretrained`.

    Example::

        segmenter = Segmenter.from_pretrained("playground")
        features = segmenter.encode(load_image("room.jpg"))
        sofas = segmenter.segment(features, Vocabulary.from_labels({"Sofa": ["sofa", "couch"]}))
    """

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = "playground",
        *,
        device: str = "auto",
        precision: str = "auto",
        backend: str = "auto",
        refine: bool = True,
        options: Mapping[str, Any] | None = None,
        cache: FeatureCache | None = None,
        batch_size: int = 8,
    ) -> Segmenter:
        """Load a model.

        Args:
            model: a name listed by `tcl_core.list_models`, ``METHOD:CONFIGURATION/TAG`` for a CLIP of open_clip, or the
                path of a model file; see `tcl_core.load_model`.
            device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
            precision: ``"auto"``, ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"int8"``, which takes a
                measurement on your images (``tcl-annotate models quantize``).
            backend: what runs the network: ``"auto"``, ``"torch"``, ``"compile"`` or ``"openvino"``.
            refine: fit the masks to the edges in the image (PAMR).
            options: options of the method, such as ``{"kp_weight": 0.2}``.
            cache: cache for image features; ``None`` caches nothing.
            batch_size: maximum number of windows per forward pass; memory grows with it.

        Raises:
            WeightsError: there is no such model, it has not been fetched, or its file is damaged.
            SettingsError: the device or precision is not available, or an option is unknown or out of range.
        """
        if options:
            # Before the weights are loaded, which takes a while.
            check_options(model, options)
        loaded = load_model(model, device, precision, backend)
        return cls(loaded, refine=refine, options=options, cache=cache, batch_size=batch_size)
