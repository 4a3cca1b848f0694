"""int8 from the command line to the masks: only behind a measurement on the user's images."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tcl_core
import tcl_core.evaluation.quantization as module
from labelstudio_backend.model_options import ModelOptions
from tcl_core.archive.base import load_base
from tcl_core.backends.calibration import Calibration
from tcl_core.backends.openvino import OpenVinoBackend
from tcl_core.cli.main import run
from tcl_core.devices import available_precisions, has_integer_products, select_precision
from tcl_core.errors import SettingsError
from tcl_core.images import load_image
from tcl_core.jobs.inputs import find_images
from tcl_core.jobs.progress import Progress
from tcl_core.models import load_model
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.vocabulary import Vocabulary
from tests.docs.pages import REPOSITORY
from tests.missing import missing
from tests.tiny_model import write_tiny_model

VOCABULARY = {"Seat": ["sofa", "couch"], "cat": "cat", "sky": "sky"}
LABELS = ["--label", "Seat=sofa,couch", "--label", "cat", "--label", "sky"]
IMAGES = 8


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    if not all(map(importlib.util.find_spec, ("openvino", "nncf"))):
        missing("precision int8 needs openvino and nncf (pip install tcl-annotate[int8])")


def write_images(folder: Path, count: int = IMAGES, columns: int = 6) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(7)
    for number in range(count):
        blocks = rng.integers(0, 256, (6, columns, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
        Image.fromarray(blocks).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture(scope="module")
def measured(photos: Path, tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which int8 is kept for the tiny model."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TCL_ANNOTATE_HOME", str(home))
        page = home / "page"
        assert quantize(photos, tiny_model_path, "--agreement", "0.9", "--preview", str(page)) == 0
    return home


@pytest.fixture
def home(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, that the test may change."""
    copy = tmp_path / "home"
    shutil.copytree(measured, copy)
    monkeypatch.setenv("TCL_ANNOTATE_HOME", str(copy))
    return copy


def quantize(photos: Path, model: Path, *more: str) -> int:
    return run(["models", "quantize", str(model), str(photos), *LABELS, "--quiet", *more])


def segment_json(image: Path, model: Path, out: Path, *more: str) -> Mapping[str, Any]:
    words = ["segment", str(image), *LABELS, "--model", str(model), "--json", str(out), "--overwrite", *more]
    assert run(words) == 0
    return json.loads(out.read_text())["info"]["settings"]


@pytest.mark.slow
def test_int8_is_nearly_float32_and_says_how_nearly(
    photos: Path, tiny_model_path: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the measured network was not kept")

    monkeypatch.setattr(OpenVinoBackend, "keep", never)
    monkeypatch.setattr("tcl_core.backends.openvino.quantized", never)
    found = segment_json(
        photos / "1.png", tiny_model_path, tmp_path / "a.json", "--precision", "int8", "--backend", "openvino"
    )
    assert (found["precision"], found["backend"]) == ("int8", "openvino")
    told = found["int8"]
    assert told["images"] == IMAGES // 2 and re.fullmatch("[0-9a-f]{64}", told["calibration"])
    # The same figures from the label maps themselves; places 0, 2, 4, 6 have calibrated.
    pairs = []
    segmenters = [
        Segmenter(load_model(tiny_model_path, device="cpu", backend="openvino", precision=name))
        for name in ("float32", "int8")
    ]
    vocabulary = Vocabulary.from_options(LABELS[1::2])
    for number in (1, 3, 5, 7):
        image = load_image(photos / f"{number}.png")
        pairs.append([segmenter.segment_image(image, vocabulary).label_map for segmenter in segmenters])
    plain, int8 = (np.stack(maps) for maps in zip(*pairs, strict=True))
    agreement = float((plain == int8).mean())
    assert 0.9 < agreement < 1 and told["agreement"] == pytest.approx(agreement, abs=1e-6)
    unions = [
        (np.logical_and(plain == k, int8 == k).sum(), np.logical_or(plain == k, int8 == k).sum()) for k in range(4)
    ]
    expected = np.mean([both / either for both, either in unions if either])
    assert told["mean_iou"] == pytest.approx(expected, abs=1e-6)
    other = segment_json(photos / "1.png", tiny_model_path, tmp_path / "a.json", "--backend", "openvino")
    assert other["precision"] != "int8" and "int8" not in other
    cards = [json.loads(line) for line in (home / "page" / "cards.jsonl").read_text().splitlines()[1:]]
    assert [(card["name"], card["column"]) for card in cards] == [
        (f"{number}.png", column) for number in (1, 3, 5, 7) for column in ("float32", "int8")
    ]


@pytest.mark.slow
def test_windows_of_another_size_are_quantized_with_the_kept_ones(
    tiny_model_path: Path, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(tiny_model_path, device="cpu", precision="int8", backend="openvino")
    segmenter = Segmenter(model)
    plain = Segmenter(replace(model, precision=torch.float32))
    # So long an image has windows that are less high than those of the measured ones.
    image = np.random.default_rng(1).integers(0, 256, (3, 30, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    windows = [float(window.windows.image_emb.mean()) for window in (segmenter.encode(image), plain.encode(image))]
    assert "quantizing the network for windows of 64 x 32 pixels" in caplog.text
    assert windows[0] != windows[1]
    vocabulary = Vocabulary.from_options(LABELS[1::2])
    maps = [each.segment_image(image, vocabulary).label_map for each in (segmenter, plain)]
    assert len(np.unique(maps[1])) > 1 and (maps[0] == maps[1]).mean() > 0.9


def test_other_weights_options_and_programs_are_not_covered(
    photos: Path, tiny_model_path: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    int8 = ["--precision", "int8", "--backend", "openvino"]
    stranger = write_tiny_model(tmp_path / "other.safetensors", seed=1)
    for named in ([str(stranger)], [f"maskclip:{tiny_model_path}"]):
        assert run(["segment", str(photos / "1.png"), *LABELS, "--model", *named, *int8]) == 2
        assert "run 'tcl-annotate models quantize MODEL IMAGE... --labels FILE'" in capsys.readouterr().err
    model = load_model(tiny_model_path, device="cpu", precision="int8", backend="openvino")
    # An option that affects scores alone leaves the network as it is.
    assert Segmenter(model, options={"kp_weight": 0.3}).settings()["int8"] == Segmenter(model).settings()["int8"]
    vnni = has_integer_products()
    for name, other in (("quantizer_version", "1.0"), ("has_integer_products", not vnni)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"tcl_core.backends.openvino.{name}", lambda value=other: value)
            with pytest.raises(SettingsError, match="was not measured for the model tiny"):
                Segmenter(model)
    for place in (home / "networks").iterdir():
        if (place / "calibration.safetensors").exists():
            (place / "calibration.safetensors").write_bytes(b"x" * (place / "calibration.safetensors").stat().st_size)
    with pytest.raises(SettingsError, match="was not measured for the model tiny"):
        Segmenter(model)


@pytest.mark.slow
def test_below_the_agreement_nothing_is_kept(
    photos: Path,
    tiny_model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TCL_ANNOTATE_HOME", str(tmp_path))
    assert quantize(photos, tiny_model_path, "--agreement", "1") == 2
    printed = capsys.readouterr()
    share = re.search(r"same label: ([0-9.]+) % of the pixels", printed.out)
    assert share is not None and float(share[1]) < 100 and "processor time of encoding an image: float32" in printed.out
    assert f"error: int8 gives the label of float32 on {share[1]} % of the pixels" in printed.err
    kept = list((tmp_path / "networks").iterdir())
    assert [path.name for entry in kept for path in entry.glob("calibration*")] == [] and len(kept) == 1
    with pytest.raises(SettingsError, match="was not measured for the model tiny"):
        tcl_core.segment(
            photos / "1.png", VOCABULARY, model=tiny_model_path, device="cpu", backend="openvino", precision="int8"
        )


@pytest.mark.slow
def test_too_few_images(
    photos: Path,
    tiny_model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TCL_ANNOTATE_HOME", str(tmp_path / "home"))
    few = write_images(tmp_path / "few", IMAGES - 1)
    assert quantize(few, tiny_model_path) == 2
    assert "7 different images that can be read are too few" in capsys.readouterr().err
    # Copies of an image are one image: of those that calibrate (places 0, 2, ...) in the first case, of the others in
    # the second.
    for copied, distinct in (("0234567", 1), ("357", 5)):
        shutil.rmtree(few)
        write_images(few)
        for number in copied:
            shutil.copy(few / "1.png", few / f"{number}.png")
        assert quantize(few, tiny_model_path) == 2
        assert f"{distinct} different image" in capsys.readouterr().err
    assert not list((tmp_path / "home" / "networks").glob("*/calibration*"))


@pytest.mark.slow
def test_another_measurement_makes_other_results(
    photos: Path, tiny_model_path: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ModelOptions(str(tiny_model_path), device="cpu", precision="int8", backend="openvino")
    version, image = options.identity(), np.zeros((64, 64, 3), np.uint8)
    key = options.load().feature_key(image)
    (photos_again := tmp_path / "again").mkdir()
    for path in photos.iterdir():
        shutil.copy(path, photos_again / f"{9 - int(path.stem)}.png")
    (photos_again / "broken.png").write_bytes(b"no image")
    assert quantize(photos_again, tiny_model_path, "--agreement", "0.5") == 1
    assert "broken.png: " in capsys.readouterr().err
    assert options.identity() != version and options.load().feature_key(image) != key
    assert replace(options, precision="float32").identity() == replace(options, precision="float32").identity()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backend": "torch"}, "OpenVINO's alone, not that of the backend torch; use --backend openvino"),
        ({"backend": "openvino", "method": "scclip"}, "the method 'scclip' has no network"),
    ],
)
def test_what_cannot_have_int8(settings: dict[str, str], words: str, tiny_model_path: Path) -> None:
    method = settings.pop("method", "")
    name = f"{method}:{tiny_model_path}" if method else tiny_model_path
    with pytest.raises(SettingsError, match=words):
        load_model(name, device="cpu", precision="int8", **settings)


def test_references_are_not_found_in_int8() -> None:
    with pytest.raises(SettingsError, match="measured for segmentation alone"):
        load_base("playground", "cpu", "int8")


def test_int8_has_to_be_installed_and_is_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "int8" in available_precisions("cpu") and select_precision("auto", "cpu") != torch.int8
    with pytest.raises(SettingsError, match="runs on the CPU, not on cuda"):
        select_precision("int8", "cuda")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else find(name))
    with pytest.raises(SettingsError, match=r"pip install 'tcl-annotate\[int8\]'"):
        select_precision("int8", "cpu")
    assert "int8" not in available_precisions("cpu")


def test_windows_are_chosen_from_all_images(tiny_model_path: Path, tmp_path: Path) -> None:
    images = find_images([str(write_images(tmp_path / "photos", 5, columns=12))])
    segmenter = Segmenter(load_model(tiny_model_path, device="cpu", precision="float32"))
    for most, expected in ((5, 5), (7, 7), (100, 5 * 3)):
        reader = module._Reader(images, Progress(5, quiet=True))
        calibration, seen = module._calibrate(segmenter, reader, range(5), most)
        assert (len(calibration.windows), len(seen)) == (expected, 5)
        assert len({bytes(window.numpy().tobytes()) for window in calibration.windows}) == expected


def test_samples_are_the_networks_input() -> None:
    window = torch.randint(0, 256, (3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    calibration = Calibration((window,), (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    (same,) = calibration.samples((8, 6))
    mean, std = np.array([0.5, 0.25, 0.0])[:, None, None], np.array([0.5, 0.25, 1.0])[:, None, None]
    np.testing.assert_allclose(same[0], (window.numpy() / 255 - mean) / std, atol=1e-6)
    (other,) = calibration.samples((4, 3))
    assert other.shape == (1, 3, 4, 3) and other.dtype == np.float32
    assert replace(calibration, mean=(0.5, 0.25, 0.1)).digest != calibration.digest


_SILENT = """
import sys
from pathlib import Path
import torch
from tcl_core.backends.calibration import Calibration
from tcl_core.backends.openvino import OpenVinoBackend
from tests.contract.examples import example_of, example_windows

window = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
backend = OpenVinoBackend(None, Calibration((window,), (0.5,) * 3, (0.5,) * 3))
features = backend.encoder(example_of("tcl"), "", torch.int8)(example_windows(1, (32, 32)))
assert "nncf" in sys.modules and torch.isfinite(features.image_emb).all()
assert "openvino_telemetry" not in sys.modules
assert not any(Path.home().iterdir())
"""


@pytest.mark.slow
def test_nothing_is_reported_or_printed(tmp_path: Path) -> None:
    """Both libraries report their use to a server, and keep a number of the user's in the home folder for that."""
    environment = {**os.environ, "HOME": str(tmp_path), "TCL_ANNOTATE_HOME": str(tmp_path.parent / "kept"), "CI": ""}
    done = subprocess.run(
        [sys.executable, "-c", _SILENT], cwd=REPOSITORY, capture_output=True, encoding="utf-8", env=environment
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.count("\n") == 1 and "quantizing the network" in done.stderr
