"""Models that stay loaded between calls of `tcl_core.segment`."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tcl_core.errors import WeightsError
from tcl_core.models import Model, load_model
from tcl_core.models.registry import check_options, find_model, named_clip, split_method
from tcl_core.segmentation.features import FeatureCache
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.vocabulary import Vocabulary

__all__ = ["clear_cache", "loaded_segmenter"]

_MODELS_KEPT = 2
_SEGMENTERS_KEPT = 8
_FEATURE_BYTES = 256 << 20


@dataclass
class _Kept:
    """A model with the features of images, and its segmenters by their settings and vocabularies."""

    model: Model
    cache: FeatureCache = field(default_factory=lambda: FeatureCache(_FEATURE_BYTES))
    segmenters: OrderedDict[tuple[object, ...], Segmenter] = field(default_factory=OrderedDict)


_lock = threading.Lock()
_kept: OrderedDict[tuple[object, ...], _Kept] = OrderedDict()


def loaded_segmenter(
    model: str | os.PathLike[str],
    vocabulary: Vocabulary,
    *,
    device: str,
    precision: str,
    refine: bool,
    options: Mapping[str, Any] | None,
    batch_size: int,
    keep_features: bool,
) -> Segmenter:
    """A segmenter for one vocabulary, which may have been made before; the two models used last are kept.

    Texts that are embedded together, and images that go through the network together, differ from single ones in the
    last bits. So that no result depends on what was asked before, each vocabulary has a segmenter of its own, and only
    images that come alone are kept.

    Args:
        model: see `Segmenter.from_pretrained`, as most other arguments. A file that has changed since is read again.
        vocabulary: that the segmenter will be asked for.
        device: where it runs.
        precision: of the matrix products.
        refine: make the masks follow the image's edges.
        options: of the method.
        batch_size: most windows at once.
        keep_features: keep features of images in main or device memory, so that an image that comes again is quick.

    Raises:
        WeightsError: there is no such model, or its file is damaged.
        SettingsError: a setting is out of range.
    """
    name = os.fspath(model)
    which = (name, _stamp(name), device, precision)
    how = (refine, repr(sorted((options or {}).items())), batch_size, keep_features, vocabulary)
    if options:
        # Before the weights are read, which takes a while.
        check_options(name, options)
    with _lock:
        if which not in _kept:
            _kept[which] = _Kept(load_model(name, device=device, precision=precision))
        entry = _kept[which]
        if how not in entry.segmenters:
            cache = entry.cache if keep_features else None
            entry.segmenters[how] = Segmenter(
                entry.model, refine=refine, options=options, cache=cache, batch_size=batch_size
            )
        _use(_kept, which, _MODELS_KEPT)
        _use(entry.segmenters, how, _SEGMENTERS_KEPT)
        return entry.segmenters[how]


def clear_cache() -> None:
    """Let go of the models and features that `tcl_core.segment` keeps between calls, and of their memory."""
    with _lock:
        _kept.clear()


def _use(kept: OrderedDict[tuple[object, ...], Any], key: tuple[object, ...], most: int) -> None:
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)


def _stamp(name: str) -> tuple[str, int, int] | None:
    """What changes when a model file is replaced; ``None`` for a CLIP, whose file is pinned, and what is not there."""
    if named_clip(name) is not None:
        return None
    try:
        path = find_model(split_method(name)[1])
    except WeightsError:
        # Loading says what is wrong.
        return None
    status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size
