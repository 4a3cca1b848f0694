"""Models that stay loaded between calls of `tcl_core.segment`."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcl_core.api.segmenter import Segmenter
from tcl_core.errors import WeightsError
from tcl_core.models.registry import find_model, named_clip, split_method
from tcl_core.segmentation.features import FeatureCache

__all__ = ["clear_cache", "loaded_segmenter"]

_MODELS_KEPT = 2
_FEATURE_BYTES = 256 << 20

_lock = threading.Lock()
_kept: OrderedDict[tuple[object, ...], dict[tuple[object, ...], Segmenter]] = OrderedDict()


def loaded_segmenter(
    model: str | os.PathLike[str],
    *,
    device: str,
    precision: str,
    refine: bool,
    options: Mapping[str, Any] | None,
    batch_size: int,
    keep_features: bool,
) -> Segmenter:
    """A segmenter that may have been made before; the two models used last are kept.

    Args:
        model: see `Segmenter.from_pretrained`, as the other arguments. A file that has changed since is read again.
        device: where it runs.
        precision: of the matrix products.
        refine: make the masks follow the image's edges.
        options: of the method.
        batch_size: most windows at once.
        keep_features: keep features of images in main or device memory, so that an image that comes again is quick.
            Images that go through the network together may differ from single ones in the last bits, so whoever
            encodes several at once keeps none, and no result depends on what was asked before.

    Raises:
        WeightsError: there is no such model, or its file is damaged.
        SettingsError: a setting is out of range.
    """
    name = os.fspath(model)
    which = (name, _stamp(name), device, precision)
    how = (refine, repr(sorted((options or {}).items())), batch_size, keep_features)
    with _lock:
        segmenters = _kept.pop(which, {})
        if how not in segmenters:
            cache = FeatureCache(_FEATURE_BYTES) if keep_features else None
            if segmenters:
                shared = next(iter(segmenters.values())).model
                made = Segmenter(shared, refine=refine, options=options, cache=cache, batch_size=batch_size)
            else:
                made = Segmenter.from_pretrained(
                    name,
                    device=device,
                    precision=precision,
                    refine=refine,
                    options=options,
                    cache=cache,
                    batch_size=batch_size,
                )
            segmenters[how] = made
        _kept[which] = segmenters
        while len(_kept) > _MODELS_KEPT:
            _kept.popitem(last=False)
        return segmenters[how]


def clear_cache() -> None:
    """Let go of the models and features that `tcl_core.segment` keeps between calls, and of their memory."""
    with _lock:
        _kept.clear()


def _stamp(name: str) -> tuple[str, int, int] | None:
    """What changes when a model file is replaced; ``None`` for a CLIP, whose file is pinned, and what is not there."""
    if named_clip(name) is not None:
        return None
    try:
        path = find_model(split_method(name)[1])
    except WeightsError:
        # Loading says what is wrong.
        return None
    status = Path(path).stat()
    return str(path), status.st_mtime_ns, status.st_size
