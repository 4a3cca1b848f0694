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
    """A model with cached image features, and its segmenters by settings and vocabulary."""

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
    backend: str,
    refine: bool,
    options: Mapping[str, Any] | None,
    batch_size: int,
    keep_features: bool,
) -> Segmenter:
    """A segmenter for one vocabulary, from the cache if possible; the two most recently used models are kept.

    Texts that are embedded in one batch, and images that are encoded in one batch, differ from single ones in the last
    bits. So that no result depends on earlier calls, each vocabulary has its own segmenter, and features are kept only
    for images that are segmented one at a time.

    Args:
        model: see `Segmenter.from_pretrained`, also for most other arguments. A model file that has changed is loaded
            again.
        vocabulary: the vocabulary that the segmenter will be used with.
        device: where the model runs.
        precision: of the matrix products.
        backend: what runs the network.
        refine: fit the masks to the edges in the image.
        options: options of the method.
        batch_size: maximum number of windows per forward pass.
        keep_features: cache image features in main or device memory, so that segmenting an image again is fast.

    Raises:
        WeightsError: there is no such model, or its file is damaged.
        SettingsError: a setting is out of range.
    """
    name = os.fspath(model)
    which = (name, _stamp(name), device, precision, backend)
    how = (refine, repr(sorted((options or {}).items())), batch_size, keep_features, vocabulary)
    if options:
        # Before the weights are loaded, which takes a while.
        check_options(name, options)
    with _lock:
        if which not in _kept:
            _kept[which] = _Kept(load_model(name, device, precision, backend))
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
    """Release the models and features that `tcl_core.segment` keeps between calls, and their memory."""
    with _lock:
        _kept.clear()


def _use(kept: OrderedDict[tuple[object, ...], Any], key: tuple[object, ...], most: int) -> None:
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)


def _stamp(name: str) -> tuple[str, int, int] | None:
    """A value that changes when a model file is replaced; ``None`` for a CLIP, which is pinned, and a missing file."""
    if named_clip(name) is not None:
        return None
    try:
        path = find_model(split_method(name)[1])
    except WeightsError:
        # Loading the model reports the error.
        return None
    status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size
