from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tcl_core.errors import WeightsError
from tcl_core.models import modelfile
from tcl_core.models.metadata import METADATA_KEY, ModelMetadata, Preprocess
from tcl_core.models.modelfile import read_metadata, read_model_file, write_model_file
from tcl_core.models.paths import file_sha256
from tcl_core.models.tensor_files import safetensors_entries

PREPROCESS = Preprocess((0.5, 0.4, 0.3), (0.2, 0.2, 0.3), 64, 128, 64, 32)
CONFIG = {
    "embed_dim": 4,
    "vision_cfg": {"layers": 2, "width": 8, "patch_size": 4},
    "text_cfg": {"layers": 1, "width": 8, "vocab_size": 9},
}
PLAIN = ModelMetadata(name="tiny", preprocess=PREPROCESS, license="MIT", source="Küche")


def tensors() -> dict[str, torch.Tensor]:
    return {"b.weight": torch.linspace(-1, 1, 12).reshape(3, 4), "a": torch.tensor(0.123456789)}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "wéights 1.safetensors"
    metadata = dataclasses.replace(PLAIN, clip={"config": CONFIG}, extra={"seed": 3})
    sha256 = write_model_file(path, metadata, tensors(), {"visual.proj": torch.ones(2, 2)})
    file = read_model_file(path)
    assert file.metadata == metadata == read_metadata(path)
    assert file.sha256 == sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == file_sha256(path)
    assert {name: tensor.tolist() for name, tensor in file.learned.items()} == {
        name: tensor.tolist() for name, tensor in tensors().items()
    }
    assert torch.equal(file.clip["visual.proj"], torch.ones(2, 2))
    assert set(load_file(path)) == {"a", "b.weight", "clip.visual.proj"}
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_half_is_read_as_float32_and_keeps_scalars(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_model_file(path, PLAIN, tensors(), half=True)
    stored, file = load_file(path), read_model_file(path)
    assert stored["b.weight"].dtype == torch.float16 and stored["a"].dtype == torch.float32
    assert all(tensor.dtype == torch.float32 for tensor in file.learned.values())
    assert torch.equal(file.learned["b.weight"], tensors()["b.weight"].half().float())
    with pytest.raises(WeightsError, match="too large for float16"):
        write_model_file(path, PLAIN, {"x": torch.tensor([1e6])}, half=True)


def test_same_input_same_bytes_and_views_are_stored(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    shared = {"x": base.T, "y": base[:2], "z": base}
    hashes = {write_model_file(tmp_path / f"{i}.safetensors", PLAIN, shared) for i in range(2)}
    assert len(hashes) == 1
    assert torch.equal(read_model_file(tmp_path / "0.safetensors").learned["x"], base.T)


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_model_file(path, PLAIN, tensors())
    before = path.read_bytes()
    with pytest.raises(WeightsError, match="tensor a has values that are not finite"):
        write_model_file(path, PLAIN, {"a": torch.tensor([1.0, float("nan")])})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    target = tmp_path / "folder.safetensors"
    target.mkdir()
    with pytest.raises(WeightsError, match="cannot be written"):
        write_model_file(target, PLAIN, tensors())
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "learned", "clip", "metadata", "message"),
    [
        ("m.bin", {}, None, PLAIN, "end in .safetensors"),
        ("m.safetensors", {"a": torch.tensor([1])}, None, PLAIN, "floating point"),
        ("m.safetensors", {"clip.a": torch.ones(1)}, None, PLAIN, "clip.a"),
        ("m.safetensors", {}, {"a": torch.ones(1)}, PLAIN, "both or neither"),
        ("m.safetensors", {}, None, dataclasses.replace(PLAIN, clip={"config": CONFIG}), "both or neither"),
    ],
)
def test_refused_writes(tmp_path: Path, name: str, learned: Any, clip: Any, metadata: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        write_model_file(tmp_path / name, metadata, learned, clip)
    assert not list(tmp_path.iterdir())


def test_metadata_is_checked_by_its_constructor() -> None:
    with pytest.raises(WeightsError, match="metadata: name must be text that is not empty, not ''"):
        dataclasses.replace(PLAIN, name="")
    with pytest.raises(WeightsError, match="preprocess: short_side must be at least 1, not 0"):
        Preprocess(PREPROCESS.mean, PREPROCESS.std, 0, 128, 64, 32)
    with pytest.raises(WeightsError, match="metadata: unknown keys: shade; the keys are name, preprocess, method"):
        ModelMetadata(name="tiny", preprocess=PREPROCESS, shade=1)  # type: ignore[call-arg]


def test_unreadable_files(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    write_model_file(good, PLAIN, tensors())
    content = good.read_bytes()
    cases = {
        "empty": b"",
        "truncated": content[:-3],
        "header": content[:40],
        "text": b"<html>not found</html>",
        "longer": content + b"x",
    }
    for name, broken in cases.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(broken)
        for read in (read_model_file, read_metadata):
            if name == "longer" and read is read_metadata:
                continue
            with pytest.raises(WeightsError, match=f"{name}.safetensors: is not a complete safetensors file"):
                read(path)
    with pytest.raises(WeightsError, match="no such file"):
        read_model_file(tmp_path / "missing.safetensors")
    with pytest.raises(WeightsError, match="cannot be read|not a complete"):
        read_model_file(tmp_path)


def test_foreign_and_damaged_descriptions(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    entry = PLAIN.to_dict()
    for header, message in [
        (None, "not a model file of tcl-annotate"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "must be a JSON object"),
        (json.dumps({**entry, "format": 1}), "format 1"),
        (json.dumps({**entry, "clip": {"config": CONFIG}}), "disagree"),
    ]:
        save_file(tensors(), path, metadata=None if header is None else {METADATA_KEY: header})
        with pytest.raises(WeightsError, match=message) as error:
            read_model_file(path)
        assert str(path) in str(error.value)
    save_file({"a": torch.tensor([float("inf")])}, path, metadata={METADATA_KEY: PLAIN.to_json()})
    with pytest.raises(WeightsError, match="tensor a has values that are not finite"):
        read_model_file(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"color": 1}, "unknown keys: color"),
        ({"name": 3}, "name must be text, not 3"),
        ({"templates": ""}, "templates must be text that is not empty"),
        ({"clip": []}, "clip must be a mapping"),
        ({"clip": {"open_clip": "x"}}, "open_clip"),
        ({"clip": {"config": {**CONFIG, "custom_text": True}}}, "custom_text"),
        ({"clip": {"config": {**CONFIG, "vision_cfg": {"timm_model_name": "x"}}}}, "timm_model_name"),
        ({"clip": {"config": {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "hf_model_name": "x"}}}}, "hf_model_name"),
        ({"clip": {"config": {**CONFIG, "vision_cfg": 3}}}, "vision_cfg"),
        ({"background_threshold": {"pamr": 0.4}}, "missing keys: plain"),
        ({"background_threshold": {"pamr": 0.4, "plain": 1.5}}, "background_threshold.plain must be at most 1"),
        (
            {"background_threshold": {"pamr": 0.4, "plain": True}},
            "background_threshold.plain must be a number, not True",
        ),
        ({"preprocess": {}}, "missing keys: max_long_side"),
        ({"preprocess": {**PREPROCESS.to_dict(), "std": [0, 1, 1]}}, "preprocess.std.0 must be above 0"),
        (
            {"preprocess": {**PREPROCESS.to_dict(), "mean": [0, 1]}},
            "preprocess.mean: too few values, number 3 is missing",
        ),
        (
            {"preprocess": {**PREPROCESS.to_dict(), "mean": [float("nan"), 1, 1]}},
            "preprocess.mean.0 must be a finite number",
        ),
        ({"preprocess": {**PREPROCESS.to_dict(), "window": 0}}, "preprocess.window must be at least 1, not 0"),
        (
            {"preprocess": {**PREPROCESS.to_dict(), "window": 64.0}},
            "preprocess.window must be a whole number, not 64.0",
        ),
        ({"preprocess": {**PREPROCESS.to_dict(), "stride": 65}}, "'stride'"),
        ({"preprocess": {**PREPROCESS.to_dict(), "max_long_side": 63}}, "'max_long_side'"),
    ],
)
def test_metadata_is_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        ModelMetadata.from_dict({**PLAIN.to_dict(), **change})


def test_optional_entries_may_be_absent() -> None:
    entry = PLAIN.to_dict()
    for key in ("method_config", "license", "source", "extra"):
        del entry[key]
    assert ModelMetadata.from_dict(entry) == dataclasses.replace(PLAIN, license="", source="")


def big_file(path: Path, value: float) -> Path:
    """A model file that is read in several portions."""
    write_model_file(path, PLAIN, {f"t{i}": torch.full((9 << 20,), value) for i in range(3)})
    return path


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["another", "none"])
def test_a_file_that_is_replaced_while_it_is_read(tmp_path: Path, ending: str) -> None:
    """Tensors of two versions would be a model that nobody trained."""
    path, other = big_file(tmp_path / "m.safetensors", 0.0), big_file(tmp_path / "other.safetensors", 1.0)
    entries = safetensors_entries(path)
    first = next(entries)[1]
    if ending == "another":
        os.replace(other, path)
    else:
        path.unlink()
    with pytest.raises(WeightsError, match=r"m\.safetensors: was replaced while it was read; run the command again"):
        list(entries)
    # What was read before is in memory of its own.
    assert not first.any()


def test_the_hash_is_that_of_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "m.safetensors", tmp_path / "other.safetensors"
    write_model_file(path, PLAIN, tensors())
    write_model_file(other, PLAIN, {"a": torch.ones(1)})

    def hash_and_replace(name: Path) -> str:
        found = file_sha256(name)
        os.replace(other, path)
        return found

    monkeypatch.setattr(modelfile, "file_sha256", hash_and_replace)
    with pytest.raises(WeightsError, match="was replaced while it was read"):
        read_model_file(path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's map of memory")
def test_weights_stay_in_the_file_and_survive_its_replacement(tmp_path: Path) -> None:
    path, other = tmp_path / "m.safetensors", tmp_path / "other.safetensors"
    write_model_file(path, PLAIN, {"a": torch.full((1000, 100), 3.0)})
    write_model_file(other, PLAIN, {"a": torch.zeros(10)})
    tensor = read_model_file(path).learned["a"]
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    places = [tuple(int(part, 16) for part in line.split()[0].split("-")) for line in maps]
    assert any(first <= tensor.data_ptr() < last for first, last in places)
    os.replace(other, path)
    assert bool((tensor == 3).all())
    # What a program does to its weights is its own.
    tensor.add_(1)
    assert read_model_file(path).learned["a"].numel() == 10
