from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from urllib.parse import urlsplit

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from tcl_core.cli.main import run
from tcl_core.errors import SettingsError, VocabularyError, WeightsError
from tcl_core.methods import create_method
from tcl_core.models import fetch_model, list_models, load_model
from tcl_core.models.checkpoints import import_checkpoint
from tcl_core.models.manifest import load_manifest
from tcl_core.models.metadata import METADATA_KEY
from tcl_core.models.modelfile import ModelFile, read_metadata, read_model_file, write_model_file
from tcl_core.models.registry import verify_model
from tcl_core.towers.open_clip_vit import FrozenClip

MINI = Path(__file__).parents[1] / "data" / "tcl_mini"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TCL_ANNOTATE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TCL_ANNOTATE_MIRROR", raising=False)
    return tmp_path / "home"


def rewrite(file: ModelFile, path: Path, **changes: object) -> Path:
    """The same model with other metadata, written without the checks of write_model_file."""
    header = {METADATA_KEY: json.dumps({**file.metadata.to_dict(), **changes})}
    save_file(load_file(file.path), path, metadata=header)
    return path


def test_a_loaded_model_computes_what_the_saved_one_did(tiny_model_path: Path) -> None:
    file = read_model_file(tiny_model_path)
    model = load_model(tiny_model_path, device="cpu", precision="float32")
    reference = create_method("tcl", {"clip": FrozenClip(open_clip.CLIP(**file.metadata.clip["config"]))})
    reference.clip.model.load_state_dict(file.clip)
    reference.load_learned_state_dict(file.learned)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mine, theirs = model.method.encode(image), reference.encode(image)
    assert torch.equal(mine.image_emb, theirs.image_emb) and torch.equal(mine.dense, theirs.dense)
    tokens = model.method.clip.tokenizer(["a red sofa"])
    assert torch.equal(model.method.embed_tokens(tokens[None]), reference.embed_tokens(tokens[None]))
    assert (model.name, model.weights_sha256) == (file.metadata.name, file.sha256)
    assert (model.device, model.precision) == (torch.device("cpu"), torch.float32)
    assert model.preprocess == file.metadata.preprocess and model.templates == "identity"
    assert model.background_threshold == {"pamr": 0.5, "plain": 0.5}
    assert not model.method.training and not any(p.requires_grad for p in model.method.parameters())


def test_unknown_words_are_refused_with_prompt_word_and_model(tiny_model_path: Path) -> None:
    model = load_model(str(tiny_model_path), device="cpu")
    model.check_prompts(["a red sofa", "The Dog!"])
    with pytest.raises(VocabularyError) as error:
        model.check_prompts(["sofa", "green zebra on ice"])
    for text in ("'green zebra on ice'", "'zebra', 'on', 'ice'", "'tiny'"):
        assert text in str(error.value)


def test_path_of_a_checkpoint_tells_to_import(tmp_path: Path) -> None:
    for name in ("x.pth", "x.PT", "x.ckpt"):
        with pytest.raises(WeightsError, match=f"tcl-annotate models import .*{name}"):
            load_model(tmp_path / name)


def test_nothing_of_that_name() -> None:
    for name in ("nope", "nope.safetensors", "", "a/b", ".."):
        with pytest.raises(WeightsError, match="there is no model and no file .*playground, tcl-vit-b16"):
            load_model(name)
    with pytest.raises(
        WeightsError, match="no model .nope. to fetch; the models are: playground, tcl-vit-b16, code-vit-b16"
    ):
        fetch_model("nope")


@pytest.mark.parametrize("name", ["naclip", "maskclip"])
def test_a_method_that_runs_on_a_clip(name: str) -> None:
    with pytest.raises(WeightsError, match=f"it is a method, which runs on a model or CLIP, such as {name}:ViT-B-16"):
        load_model(name)


@pytest.mark.parametrize("name", ["mgca-style", "code", "groupvit", "reco"])
def test_a_method_that_needs_weights_is_not_said_to_run_on_a_clip(name: str) -> None:
    with pytest.raises(WeightsError, match=f"'{name}' is a method with weights of its own; give .* of a model of it"):
        load_model(name)


def test_wrong_device_and_precision_come_first() -> None:
    with pytest.raises(SettingsError, match="device"):
        load_model("nope", device="tpu")
    with pytest.raises(SettingsError, match="precision"):
        load_model("nope", device="cpu", precision="int4")


def test_model_that_is_not_fetched(home: Path) -> None:
    with pytest.raises(WeightsError) as error:
        load_model("tcl-vit-b16")
    files = load_manifest().models["tcl-vit-b16"].files
    expected = [part for file in files for part in (file.filename, file.url)]
    for text in ("tcl-annotate models fetch tcl-vit-b16", str(home / "downloads"), *expected):
        assert text in str(error.value)


def test_list(home: Path, tiny_model_path: Path) -> None:
    rows = {row.name: row for row in list_models()}
    known = list(load_manifest().models)
    assert [name for name in rows if ":" not in name] == known and {"playground", "tcl-vit-b16"} <= set(known)
    assert not rows["tcl-vit-b16"].installed and rows["tcl-vit-b16"].size is None
    assert rows["playground"].installed == rows["playground"].path.is_file()
    import_checkpoint(MINI / "full.pth", name="mini", license="MIT")
    import_checkpoint(MINI / "minimal.pth")
    (home / "models" / "broken.safetensors").write_bytes(b"x")
    (home / "models" / "tcl-vit-b16.safetensors").write_bytes(b"x")
    rows = {row.name: row for row in list_models()}
    assert [name for name in rows if ":" not in name] == [
        *known,
        "broken",
        "mini",
        "minimal",
    ]
    assert not rows["minimal"].installed and "without its CLIP" in rows["minimal"].description
    mini = rows["mini"]
    assert (mini.installed, mini.license, mini.size) == (True, "MIT", mini.path.stat().st_size)
    assert not rows["broken"].installed and "cannot be used" in rows["broken"].description
    # Without its CLIP the model cannot be used, whatever lies in its place.
    assert not rows["tcl-vit-b16"].installed


def test_verify(home: Path) -> None:
    path = import_checkpoint(MINI / "full.pth", name="mini")
    assert verify_model("mini") == verify_model(path) == read_model_file(path).sha256
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="not a complete"):
        verify_model("mini")


def change_config(file: ModelFile, part: str, key: str, value: object) -> dict[str, object]:
    config = json.loads(json.dumps(file.metadata.clip["config"]))
    (config[part] if part else config)[key] = value
    return {"clip": {"config": config}}


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("", "embed_dim", 10**9, "embed_dim is 1000000000, its tensors have 32"),
        ("vision_cfg", "layers", 10**6, "vision_cfg.layers"),
        ("vision_cfg", "width", 65, "vision_cfg.width"),
        ("vision_cfg", "image_size", 10**7, "vision_cfg.image_size"),
        ("text_cfg", "vocab_size", 10**9, "text_cfg.vocab_size"),
        ("vision_cfg", "head_width", 0, "cannot build"),
        ("vision_cfg", "head_width", "x", "cannot build"),
        ("vision_cfg", "pool_type", "odd", "build|pool_type"),
    ],
)
def test_configuration_must_fit_the_tensors(
    tiny_model_path: Path, tmp_path: Path, part: str, key: str, value: object, message: str
) -> None:
    file = read_model_file(tiny_model_path)
    path = rewrite(file, tmp_path / "m.safetensors", **change_config(file, part, key, value))
    with pytest.raises(WeightsError, match=message) as error:
        load_model(path, device="cpu")
    assert str(path) in str(error.value)


def test_tensors_must_fit(tiny_model_path: Path, tmp_path: Path) -> None:
    file = read_model_file(tiny_model_path)
    path = tmp_path / "m.safetensors"
    for clip_change, learned_change, expected in [
        (lambda c: c.pop("ln_final.bias"), None, ["missing: ln_final.bias"]),
        (lambda c: c.update(more=torch.ones(1)), None, ["unknown: more"]),
        (lambda c: c.update({"ln_final.bias": torch.ones(3)}), None, ["ln_final.bias [3] instead of [32]"]),
        (None, lambda c: c.pop("masker.sim2mask.w"), ["missing: masker.sim2mask.w"]),
        (None, lambda c: c.update(more=torch.ones(1)), ["unknown: more"]),
    ]:
        clip, learned = dict(file.clip), dict(file.learned)
        if clip_change:
            clip_change(clip)
        if learned_change:
            learned_change(learned)
        write_model_file(path, file.metadata, learned, clip)
        with pytest.raises(WeightsError) as error:
            load_model(path, device="cpu")
        for text in [str(path), *expected]:
            assert text in str(error.value)


def test_description_must_fit(tiny_model_path: Path, tmp_path: Path) -> None:
    file = read_model_file(tiny_model_path)
    words = file.metadata.tokenizer["words"]
    for changes, message in [
        ({"method": "magic"}, "no method 'magic'"),
        ({"method_config": {"magic": 1}}, "magic"),
        ({"tokenizer": {"type": "words", "words": words, "context_length": 11}}, "text tower takes 12 of 19"),
        ({"tokenizer": {"type": "words", "words": [*words, "new"], "context_length": 12}}, "12 of 20 ids"),
        ({"tokenizer": {"type": "odd"}}, "tokenizer"),
    ]:
        path = rewrite(file, tmp_path / "m.safetensors", **changes)
        with pytest.raises(WeightsError, match=message) as error:
            load_model(path, device="cpu")
        assert str(path) in str(error.value)


def test_reference_to_an_unknown_clip(tmp_path: Path) -> None:
    path = import_checkpoint(MINI / "minimal.pth")
    file = read_model_file(path)
    for reference, message in [
        ({"open_clip": "local-dir:/etc", "pretrained": "x"}, "not known to this version"),
        ({"open_clip": "ViT-B-16-quickgelu", "pretrained": "openai"}, "models fetch clip-vit-b16-openai"),
    ]:
        write_model_file(path, dataclasses.replace(file.metadata, clip=reference), file.learned)
        with pytest.raises(WeightsError, match=message):
            load_model("minimal", device="cpu")


@pytest.mark.slow
def test_fetch_the_full_model_from_a_mirror(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = tmp_path_factory.mktemp("mirror")
    monkeypatch.setenv("TCL_ANNOTATE_MIRROR", str(mirror))
    torch.manual_seed(0)
    clip = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16-quickgelu"))
    method = create_method("tcl", {"clip": FrozenClip(clip)})
    learned = {name: tensor for name, tensor in method.learned_state_dict().items() if name.startswith("masker.")}
    checkpoint_file, clip_file = load_manifest().models["tcl-vit-b16"].files
    for file in (checkpoint_file, clip_file):
        (mirror / urlsplit(file.url).path[1:]).parent.mkdir(parents=True)
    torch.save({"model": learned}, mirror / urlsplit(checkpoint_file.url).path[1:])
    save_file(clip.half().state_dict(), mirror / urlsplit(clip_file.url).path[1:])

    path = fetch_model("tcl-vit-b16", progress=False)
    assert path == home / "models" / "tcl-vit-b16.safetensors"
    written = path.stat().st_mtime_ns
    assert fetch_model("tcl-vit-b16", progress=False) == path and path.stat().st_mtime_ns == written
    metadata = read_metadata(path)
    assert metadata.license == "MIT" and metadata.clip["pretrained"] == "openai"
    assert next(row for row in list_models() if row.name == "tcl-vit-b16").installed
    model = load_model("tcl-vit-b16", device="cpu")
    assert (model.method.clip.depth, model.preprocess.window, model.preprocess.stride) == (12, 448, 224)
    loaded = model.method.learned_state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in learned.items())
    proj = model.method.clip.visual.proj
    assert torch.equal(proj, clip.visual.proj.float())

    downloaded = home / "downloads" / clip_file.filename
    save_file({"x": torch.ones(1)}, downloaded)
    with pytest.raises(WeightsError, match="the first download had"):
        load_model("tcl-vit-b16", device="cpu")


def test_import_keeps_a_model_that_is_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["models", "import", str(MINI / "full.pth"), "--name", "mine"]
    assert run(words) == 0
    path = home / "models" / "mine.safetensors"
    before = path.read_bytes()
    capsys.readouterr()
    assert run([*words[:2], str(MINI / "minimal.pth"), *words[3:]]) == 2
    assert "mine.safetensors: already exists; add --overwrite, or choose another --name" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert run([*words, "--overwrite"]) == 0
