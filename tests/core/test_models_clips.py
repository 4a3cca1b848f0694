"""CLIPs of open_clip as models: found by name, fetched from a hub on the loopback, pinned, and used."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import skimage.data
import torch
from open_clip import pretrained
from PIL import Image
from safetensors.torch import load_file, save_file

from tcl_core.cli.main import run
from tcl_core.errors import SettingsError, WeightsError
from tcl_core.models import fetch_model, list_models, load_model
from tcl_core.models.clips import clip_name
from tcl_core.models.loading import options_of
from tcl_core.models.paths import file_sha256
from tcl_core.models.registry import named_clip, verify_model, weights_file
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.towers.open_clip_catalog import architectures, refusal
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.vocabulary import Vocabulary
from tests.contract.examples import example_image
from tests.core.hub_server import HubServer, serve_hub
from tests.forked import run_python

ARCHITECTURE = "ViT-Tiny-8-quickgelu"
REPOSITORY = "somebody/vit-tiny"
FILE = "open_clip_model.safetensors"
NAME = f"naclip:{ARCHITECTURE}/random"
CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TCL_ANNOTATE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TCL_ANNOTATE_MIRROR", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A configuration and a tag that open_clip comes to know, small enough for quick tests."""
    folder = tmp_path / "configs"
    folder.mkdir()
    for name, config in {ARCHITECTURE: CONFIG, "ViT-Tiny-8": {**CONFIG, "quick_gelu": False}}.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    known = dict(open_clip.factory._MODEL_CONFIGS), list(open_clip.factory._MODEL_CONFIG_PATHS)
    open_clip.add_model_config(folder)
    entry = {"hf_hub": f"{REPOSITORY}/", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.3), "quick_gelu": True}
    monkeypatch.setitem(pretrained._PRETRAINED, ARCHITECTURE, {"random": entry})
    for cached in (architectures, refusal):
        cached.cache_clear()
    yield
    open_clip.factory._MODEL_CONFIG_PATHS[:] = known[1]
    open_clip.factory._MODEL_CONFIGS.clear()
    open_clip.factory._MODEL_CONFIGS.update(known[0])
    for cached in (architectures, refusal):
        cached.cache_clear()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = open_clip.CLIP(**CONFIG)
    path = tmp_path_factory.mktemp("weights") / FILE
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


@pytest.fixture
def hub(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serve_hub(HubServer({REPOSITORY: {FILE: weights}})) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(skimage.data, name)()[::4, ::4]).save(folder / f"{name}.png")
    return folder


# -- names -------------------------------------------------------------------------------------------------------------


def test_names() -> None:
    found = clip_name("ViT-B-16/laion2b_s34b_b88k")
    assert found is not None and (found.architecture, found.tag, str(found)) == (
        "ViT-B-16",
        "laion2b_s34b_b88k",
        "ViT-B-16/laion2b_s34b_b88k",
    )
    file = clip_name("ViT-B-16=some/file.safetensors")
    assert file is not None and file.file == Path("some/file.safetensors")
    for text in ("playground", "./ViT-B-16/openai", "ViT-B-16/a/b", "photos/a.safetensors", "ViT-B-16", "", "/", "="):
        assert clip_name(text) is None


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert named_clip("naclip:ViT-B-16/openai") is not None
    Path("ViT-B-16").mkdir()
    Path("ViT-B-16/openai").touch()
    assert named_clip("naclip:ViT-B-16/openai") is None


def test_a_clip_needs_a_method(weights: Path) -> None:
    with pytest.raises(WeightsError, match=f"write it with one, such as naclip:{ARCHITECTURE}/random"):
        load_model(f"{ARCHITECTURE}/random")
    with pytest.raises(SettingsError, match="'tcl' needs learned tensors"):
        load_model(f"tcl:{ARCHITECTURE}={weights}")
    # Said before a CLIP is looked for, which would be downloaded.
    with pytest.raises(SettingsError, match="'mgca-style' needs learned tensors"):
        load_model("mgca-style:ViT-B-16-quickgelu/openai")


def test_the_list_shows_suggestions(hub: HubServer) -> None:
    rows = {row.name: row for row in list_models()}
    suggested = [name for name in rows if ":" in name]
    assert "naclip:ViT-B-16-quickgelu/openai" in suggested and "scclip:ViT-L-14/laion2b_s32b_b82k" in suggested
    for name in suggested:
        assert named_clip(name) is not None and not rows[name].installed and rows[name].license == "MIT"


def test_options_need_no_download() -> None:
    for name in ("naclip", NAME, "naclip:ViT-B-16/openai"):
        method, options = options_of(name)
        assert method == "naclip" and {row.name: row.value for row in options.rows()}["sigma"] == 5.0


# -- a new user's path -------------------------------------------------------------------------------------------------


def test_prelabel_fetches_pins_and_labels(
    hub: HubServer, home: Path, photos: Path, capsys: pytest.CaptureFixture[str], weights: Path
) -> None:
    words = ["prelabel", str(photos), "--model", NAME, "--label", "cat", "--label", "cup", "--templates", "simple"]
    words += ["--background-names", "none", "--background-threshold", "0", "--min-area", "400", "--geometry", "rle"]
    assert run([*words, "--out", str(photos.parent / "labels.json")]) == 0
    (kept,) = (home / "downloads").glob("*.safetensors")
    assert kept.name == f"somebody--vit-tiny--{FILE}" and kept.read_bytes() == weights.read_bytes()
    pin = json.loads(Path(f"{kept}.pin.json").read_text())
    assert pin["sha256"] == file_sha256(weights)
    coco = json.loads((photos.parent / "labels.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["astronaut.png", "coffee.png"]
    assert coco["annotations"]
    assert NAME in json.dumps(coco["info"])
    # The second run asks nobody.
    asked = len(hub.requests)
    assert run([*words, "--out", str(photos.parent / "again.json")]) == 0
    assert len(hub.requests) == asked
    assert verify_model(NAME) == pin["sha256"] and weights_file(NAME) == kept
    assert {row.name: row for row in list_models()}[NAME].installed
    capsys.readouterr()


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence with which a command ends."""
    assert run(words) != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line and "%|" not in line and "it/s" not in line]
    assert "Traceback" not in "".join(lines)
    return lines[-1]


def test_a_missing_file_is_one_sentence(
    hub: HubServer, home: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repos[REPOSITORY] = {"README.md": b"nothing"}
    words = ["prelabel", str(photos), "--model", NAME, "--label", "cat", "--out", str(photos.parent / "x.json")]
    message = refused(words, capsys)
    assert "404" in message and FILE in message and str(home / "downloads") in message


@pytest.mark.slow
def test_a_cut_download_is_one_sentence(hub: HubServer, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["models", "fetch", NAME, "--quiet"]
    hub.cuts[:] = [200_000] * 20
    message = refused(words, capsys)
    assert "the connection ended" in message and not list((home / "downloads").glob("*.safetensors"))
    hub.cuts.clear()
    assert run(words) == 0
    capsys.readouterr()


def test_a_changed_file_is_one_sentence(
    hub: HubServer, home: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch_model(NAME, progress=False)
    (kept,) = (home / "downloads").glob("*.safetensors")
    content = bytearray(kept.read_bytes())
    content[-5] ^= 1
    kept.write_bytes(content)
    words = ["prelabel", str(photos), "--model", NAME, "--label", "cat", "--out", str(photos.parent / "x.json")]
    message = refused(words, capsys)
    assert "but the first download had" in message and "delete" in message
    # The server's copy changed as well: the pin does not let it in.
    kept.unlink()
    hub.repos[REPOSITORY] = {FILE: bytes(content)}
    assert "but the first download had" in refused(words, capsys)


def test_a_truncated_file_is_one_sentence(home: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Put into the folder by hand."""
    path = home / "downloads" / f"somebody--vit-tiny--{FILE}"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    words = ["prelabel", str(photos), "--model", NAME, "--label", "cat", "--out", str(photos.parent / "x.json")]
    assert "is not a safetensors file" in refused(words, capsys)


def test_without_a_network(home: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prelabel", str(photos), "--model", NAME, "--label", "cat", "--out", str(photos.parent / "x.json")]
    message = refused(words, capsys)
    assert f"save it as {home / 'downloads' / 'somebody--vit-tiny--open_clip_model.safetensors'}" in message


def test_the_other_format_is_taken_where_there_is_no_safetensors(
    hub: HubServer, weights: Path, tmp_path: Path, home: Path
) -> None:
    torch.save(load_file(weights), tmp_path / "weights.bin")
    expected = dense(load_model(NAME, "cpu"))
    hub.repos[REPOSITORY] = {"open_clip_pytorch_model.bin": tmp_path / "weights.bin"}
    for path in (home / "downloads").iterdir():
        path.unlink() if path.is_file() else None
    assert torch.equal(dense(load_model(NAME, "cpu")), expected)
    assert [path.name for path in (home / "downloads").glob("*.bin")] == [
        "somebody--vit-tiny--open_clip_pytorch_model.bin"
    ]


# -- what is loaded ----------------------------------------------------------------------------------------------------


def dense(model: Any) -> torch.Tensor:
    return Segmenter(model).encode(example_image()).windows.dense


def test_defaults_of_a_clip(hub: HubServer) -> None:
    model = load_model(NAME, "cpu")
    preprocess = model.preprocess
    assert (preprocess.window, preprocess.stride, preprocess.short_side) == (32, 16, 48)
    assert (preprocess.mean, preprocess.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
    assert (model.name, model.templates, model.method.name) == (NAME, "full", "naclip")
    segmenter = Segmenter(model)
    assert segmenter.refiner is not None and segmenter.refiner.identity()["dilations"] == [8, 16]
    assert segmenter.background_threshold == 0.1


def test_a_file_of_ones_own(hub: HubServer, weights: Path, tmp_path: Path) -> None:
    expected = dense(load_model(NAME, "cpu"))
    # With the mean and deviation of OpenAI's CLIP, because a file says nothing of them.
    own = load_model(f"naclip:{ARCHITECTURE}={weights}", "cpu")
    assert own.preprocess.mean[0] == pytest.approx(0.4815, abs=1e-4)
    same = own.method.encode(torch.ones(1, 3, 32, 32))
    assert torch.equal(same.dense, load_model(NAME, "cpu").method.encode(torch.ones(1, 3, 32, 32)).dense)
    assert not torch.equal(dense(own), expected)
    wrapped = tmp_path / "training.pt"
    state = {f"module.{name}": tensor for name, tensor in load_file(weights).items()}
    torch.save({"epoch": 3, "state_dict": {**state, "module.context_length": torch.tensor(77)}}, wrapped)
    again = load_model(f"naclip:{ARCHITECTURE}={wrapped}", "cpu")
    assert torch.equal(dense(again), dense(own))
    with pytest.raises(WeightsError, match="there is no such|No such file"):
        load_model(f"naclip:{ARCHITECTURE}={tmp_path / 'none.safetensors'}")
    with pytest.raises(WeightsError, match="configuration and tensors differ"):
        load_model(f"naclip:ViT-B-32={weights}")


def test_files_of_other_libraries(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "pytorch_model.bin"
    torch.save({"vision_model.embeddings.class_embedding": torch.zeros(3)}, other)
    with pytest.raises(WeightsError, match="names of transformers or timm"):
        load_model(f"naclip:{ARCHITECTURE}={other}")
    program = tmp_path / "ViT-B-16.pt"
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(program))
    with pytest.raises(WeightsError, match="is a TorchScript archive"):
        load_model(f"naclip:{ARCHITECTURE}={program}")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="does not contain named tensors"):
        load_model(f"naclip:{ARCHITECTURE}={tmp_path / 'list.pt'}")


def test_the_activation_of_a_file_is_said(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Files fine-tuned from OpenAI's under a name without -quickgelu are a frequent mistake."""
    with caplog.at_level(logging.WARNING):
        load_model(f"naclip:ViT-Tiny-8={weights}", "cpu")
    assert "used with GELU, as ViT-Tiny-8 says, and the mean and deviation" in caplog.text


def test_a_corrected_activation_is_said(hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = load_model("naclip:ViT-Tiny-8/random", "cpu")
    assert "were trained with QuickGELU, which is used instead of the GELU" in caplog.text
    assert torch.equal(dense(model), dense(load_model(NAME, "cpu")))


@pytest.mark.slow
def test_all_methods_share_one_download(hub: HubServer, home: Path) -> None:
    vocabulary = Vocabulary.from_options(["cat", "dog"], templates="simple")
    maps = []
    for method in ("maskclip", "maskclip-refined", "sclip", "clearclip", "naclip", "scclip"):
        segmenter = Segmenter(load_model(f"{method}:{ARCHITECTURE}/random", "cpu"))
        maps.append(segmenter.score_maps(segmenter.encode(example_image()), vocabulary))
    assert len(list((home / "downloads").glob("*.safetensors"))) == 1
    assert not any(torch.allclose(first, second) for first, second in zip(maps, maps[1:], strict=False))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("naclip:ViT-Tiny-8-quickgelu/rondom", "did you mean random"),
        ("naclip:RN50/openai", "cannot be used: its image tower is a ResNet"),
        ("naclip:ViT-Timy-8/random", "no model and no file called"),
        ("nosuch:playground", "'nosuch' is not a method; the methods are clearclip, code, "),
        ("naclip", "it is a method, which runs on a model or CLIP"),
        ("naclip:ViT-B-16", "use ViT-B-16/TAG with the tag of its weights, or ViT-B-16=FILE"),
        # As OpenAI writes it.
        ("naclip:ViT-B/16", "did you mean ViT-B-16"),
    ],
)
def test_names_that_are_not_known(name: str, message: str) -> None:
    with pytest.raises(WeightsError) as caught:
        load_model(name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# -- memory ------------------------------------------------------------------------------------------------------------

MEASURE = """
import os, pathlib, sys
from tcl_core.models.loading import load_model
import tcl_core.towers.open_clip_catalog as catalog
# Everything is imported before, and open_clip's tables are filled.
load_model(sys.argv[1], "cpu")
catalog.clip_config("ViT-B-32")
def resident(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
for name in sys.argv[2:]:
    # None finds memory that another has left.
    if os.fork():
        assert os.wait()[1] == 0
        continue
    # The peak so far is forgotten.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS:")
    model = load_model(name, "cpu")
    after = resident("VmHWM:")
    weights = sum(tensor.numel() * 4 for tensor in model.method.state_dict().values())
    print((after - before) * 1024 / weights, weights, flush=True)
    os._exit(0)
"""


def write_clip_files(folder: Path) -> dict[str, str]:
    """A ViT-B/32 as files of each kind, under the names by which they are loaded."""
    from tcl_core.methods import create_method
    from tcl_core.models.metadata import ModelMetadata, Preprocess
    from tcl_core.models.modelfile import write_model_file

    config = open_clip.get_model_config("ViT-B-32")
    assert config is not None
    model = open_clip.CLIP(**config)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "whole.safetensors")
    save_file({key: tensor.half() for key, tensor in state.items()}, folder / "half.safetensors")
    # As training writes it, with twice as much beside the weights.
    torch.save({"optimizer": {"exp_avg": torch.zeros(300, 1 << 20)}, "state_dict": state}, folder / "weights.bin")
    method = create_method("tcl", {"clip": FrozenClip(model)})
    metadata = ModelMetadata("big", Preprocess((0, 0, 0), (1, 1, 1), 224, 448, 224, 112), clip={"config": config})
    model_files = [folder / name for name in ("model.safetensors", "half model.safetensors")]
    for path in model_files:
        write_model_file(path, metadata, method.learned_state_dict(), state, half=path.name.startswith("half"))
    files = [f"naclip:ViT-B-32={folder / name}" for name in ("whole.safetensors", "half.safetensors", "weights.bin")]
    kinds = ("safetensors", "half", "bin", "model file", "half model file")
    return dict(zip(kinds, [*files, *map(str, model_files)], strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux alone can forget a peak of memory")
def test_loading_takes_little_more_than_the_weights(tmp_path: Path, tiny_model_path: Path) -> None:
    files = write_clip_files(tmp_path)
    done = run_python(["-c", MEASURE, tiny_model_path, *files.values()])
    assert done.returncode == 0, done.stderr
    for kind, line in zip(files, done.stdout.splitlines(), strict=True):
        share, size = map(float, line.split())
        print(f"{kind}: {share:.2f} times {size / 1e6:.0f} MB")
        # Less than the weights themselves would mean that nothing was measured.
        assert size > 3e8 and 0.95 <= share <= 1.3, kind


@pytest.mark.slow
def test_the_documented_command_of_a_new_user(home: Path, photos: Path, tmp_path: Path) -> None:
    """OpenAI's ViT-B/16 by its name, in a process of its own, random numbers standing for the weights."""
    config = open_clip.get_model_config("ViT-B-16-quickgelu")
    assert config is not None
    state = open_clip.CLIP(**config).state_dict()
    weights = tmp_path / "weights.safetensors"
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, weights)
    (tmp_path / "labels.yaml").write_text("[cat, cup]")
    words = ["prelabel", photos, "--labels", tmp_path / "labels.yaml", "--out", tmp_path / "labels.json"]
    words += ["--model", "naclip:ViT-B-16-quickgelu/openai", "--templates", "simple"]
    with serve_hub(HubServer({"timm/vit_base_patch16_clip_224.openai": {FILE: weights}})) as server:
        done = subprocess.run(
            [sys.executable, "-m", "tcl_core.cli", *map(str, words)],
            env={**os.environ, "HF_ENDPOINT": server.endpoint},
            capture_output=True,
            encoding="utf-8",
        )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "clip-vit-b16-openai.safetensors" in done.stderr, "no progress was shown"
    pin = home / "downloads" / "clip-vit-b16-openai.safetensors.pin.json"
    assert json.loads(pin.read_text())["sha256"] == file_sha256(weights)
    assert len(json.loads((tmp_path / "labels.json").read_text())["images"]) == 2


def damaged(weights: Path, tmp_path: Path, kind: str) -> Path:
    """A state dict with something that no CLIP has."""
    state: dict[Any, Any] = load_file(weights)
    name, path = "visual.proj", tmp_path / f"{kind}.pt"
    whole = state[name]
    state[name] = {
        "flat": whole[0].clone(),
        "empty": whole[:0].clone(),
        "not finite": whole.clone().fill_(float("inf")),
        "whole numbers": whole.long(),
        "sparse": whole.to_sparse(),
        "enormous": torch.zeros(1, dtype=torch.float16).expand(10**6, 10**6),
    }.get(kind, whole)
    if kind == "flat patches":
        state["visual.conv1.weight"] = state["visual.conv1.weight"].flatten(1)
    if kind == "key":
        del state[name]
        state[3] = whole
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    "kind",
    ["flat", "empty", "not finite", "whole numbers", "sparse", "enormous", "flat patches", "key"],
)
def test_a_file_that_is_no_clip_is_one_sentence(weights: Path, tmp_path: Path, kind: str) -> None:
    path = damaged(weights, tmp_path, kind)
    with pytest.raises(WeightsError) as caught:
        load_model(f"naclip:{ARCHITECTURE}={path}")
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert ("visual.conv1.weight" if kind == "flat patches" else "visual.proj") in message
