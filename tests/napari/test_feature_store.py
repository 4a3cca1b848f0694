from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_tcl.feature_store import FeatureFolder, FolderFeatureCache
from napari_tcl.folder import FolderJob
from tcl_core.methods import list_methods
from tcl_core.models import Model
from tcl_core.segmentation.features import ImageFeatures
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession
from tcl_core.vocabulary import Vocabulary
from tests.contract.examples import example_of, model_of, vocabulary_of
from tests.network import forbid_network

VOCABULARY = Vocabulary.from_options(["Cat=cat,dog", "Sky=sky"])


@pytest.fixture
def features(segmenter: Segmenter, image: np.ndarray) -> ImageFeatures:
    return segmenter.encode(image)


@pytest.mark.parametrize("method", list_methods())
@pytest.mark.parametrize("refine", [True, False])
def test_another_day_gives_the_same_masks_without_the_network(
    method: str, refine: bool, image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(example_of(method))
    vocabulary = vocabulary_of(model.method)
    cache = FolderFeatureCache()
    segmenter = Segmenter(model, refine=refine, cache=cache, batch_size=2)
    kept = FeatureFolder(tmp_path / "photos.features")
    with cache.beside(kept):
        session = ImageSession(segmenter, image)
        first, scores = session.segment(vocabulary), session.scores(vocabulary)
    assert len(kept) == 1 and kept.words() == ""

    cache = FolderFeatureCache()
    again = Segmenter(model, refine=refine, cache=cache, batch_size=2)
    forbid_network(monkeypatch)
    with cache.beside(FeatureFolder(tmp_path / "photos.features")):
        session = ImageSession(again, image)
        second = session.segment(vocabulary)
    # 16 bits move scores by thousandths, and labels where two scores are as near as that.
    assert (session.scores(vocabulary) - scores).abs().max() < 0.01
    assert np.mean(first.label_map != second.label_map) < 0.005
    assert second.label_map.any()


def test_file_is_small_and_exact_to_16_bits(features: ImageFeatures, tmp_path: Path) -> None:
    kept = FeatureFolder(tmp_path / "f")
    assert features.key not in kept and kept.get(features.key) is None
    assert kept.put(features) and features.key in kept
    found = kept.get(features.key)
    assert found is not None and found.guide is None and found.image_guide is None
    for name in ("origins", "working_size", "score_size", "size", "key"):
        assert getattr(found, name) == getattr(features, name)
    for name, tensor in features.windows.tensors().items():
        restored = found.windows.tensors()[name]
        assert restored.dtype == tensor.dtype
        assert torch.equal(restored, tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor)
    assert kept.nbytes < features.windows.nbytes / 2 + 2000
    assert (tmp_path / "f" / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_other_pixels_weights_and_settings_are_other_features(
    tiny_model: Model, image: np.ndarray, features: ImageFeatures, tmp_path: Path
) -> None:
    kept = FeatureFolder(tmp_path)
    kept.put(features)
    changed = image.copy()
    changed[0, 0, 0] ^= 1
    plain = Segmenter(tiny_model, refine=False)
    keys = [Segmenter(tiny_model).feature_key(changed), plain.feature_key(image), replace(features.key, weights="0")]
    assert [kept.get(key) for key in keys] == [None] * 3
    assert Segmenter(tiny_model).feature_key(image) == features.key and features.key in kept
    # A file under another's name is not taken for it.
    (path,) = tmp_path.glob("*.features")
    os.replace(path, kept._file(keys[0]))
    assert kept.get(keys[0]) is None and "1 damaged file" in kept.words()


def test_damaged_files_are_ignored_with_a_word_and_replaced(features: ImageFeatures, tmp_path: Path) -> None:
    kept = FeatureFolder(tmp_path)
    kept.put(features)
    (path,) = tmp_path.glob("*.features")
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-40] ^= 4
    wrong = [b"", b"\0" * 100, good[:-1], good[: len(good) // 2], bytes(flipped), b"\xff" * 8 + good[8:]]
    wrong += [good.replace(b"TCLFeatures", b"TCLFeatureS"), good.replace(b'origins\\": [[', b'origins\\": [[[')]
    # Sizes decide where masks lie, and a name of no number format is no attribute of PyTorch.
    height = f'\\"size\\": [{features.size[0]}'.encode()
    wrong += [good.replace(height, height[:-1] + b"7"), good.replace(b'"float32', b'"float33')]
    assert all(content != good for content in wrong)
    for content in wrong:
        path.write_bytes(content)
        assert kept.get(features.key) is None
        assert features.key not in kept
        assert kept.words() == f"1 damaged file in {tmp_path} ignored"
        assert kept.words() == ""
        assert kept.put(features) and kept.get(features.key) is not None
        assert path.read_bytes() == good


def test_bounds(features: ImageFeatures, tmp_path: Path) -> None:
    first = FeatureFolder(tmp_path / "a")
    first.put(features)
    size = first.nbytes
    small = FeatureFolder(tmp_path / "b", max_image_bytes=size - 1)
    assert not small.put(features) and len(small) == 0
    assert small.words() == "features of 1 image not kept on disk (more than 0 MB an image)"

    def numbered(number: int, weights: str = "") -> ImageFeatures:
        return replace(features, key=replace(features.key, content=f"{number:064x}", weights=weights))

    kept = FeatureFolder(tmp_path / "c", max_bytes=round(size * 3.5))
    old = [numbered(number, weights="old") for number in range(2)]
    new = [numbered(number) for number in range(5)]
    assert all(kept.put(item) for item in old)
    # Features of another model make room, the oldest first; those of this one stay.
    os.utime(kept._file(old[0].key), (1, 1))
    assert [kept.put(item) for item in new[:2]] == [True, True]
    assert [item.key in kept for item in old] == [False, True]
    assert [kept.put(item) for item in new[2:]] == [True, False, False]
    assert [item.key in kept for item in [*old, *new]] == [False, False, True, True, True, False, False]
    assert kept.nbytes <= kept.max_bytes and "of 2 images not kept on disk (more than" in kept.words()
    assert kept.put(new[0]), "a file that is replaced needs no room"


def test_a_disk_that_refuses_costs_nothing_else(features: ImageFeatures, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = FeatureFolder(tmp_path / "file")
    cache = FolderFeatureCache()
    with cache.beside(kept):
        assert cache.put(features.key, features) and cache.get(features.key) is features
    assert "not kept on disk" in kept.words()
    infinite = replace(features, windows=replace(features.windows, dense=features.windows.dense * 1e9))  # type: ignore[attr-defined,call-arg]
    assert not FeatureFolder(tmp_path / "new").put(infinite)
    assert not (tmp_path / "new").exists()


def test_a_job_without_a_folder_writes_nothing(segmenter: Segmenter, image: np.ndarray, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.fromarray(image).save(tmp_path / "photos" / "a.png")
    job = FolderJob.open(tmp_path / "photos", VOCABULARY, segmenter.settings(), tmp_path / "photos.masks")
    cache = FolderFeatureCache()
    with cache.beside(None):
        list(job.run(Segmenter(segmenter.model, refine=segmenter.refine, cache=cache)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "photos.masks"]
