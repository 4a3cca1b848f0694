from __future__ import annotations

import json
import os
import pickle
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tcl_core.errors import WeightsError
from tcl_core.models import load_model
from tcl_core.models.checkpoints import import_checkpoint, read_checkpoint
from tcl_core.models.modelfile import read_metadata, read_model_file
from tcl_core.models.paths import file_sha256
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.vocabulary import Vocabulary
from tests.contract.examples import example_image
from tests.core.tcl_models import pamr_guide, score_maps

MINI = Path(__file__).parents[1] / "data" / "tcl_mini"
BLOCK = "masker.image_encoder.backbone.transformer.resblocks."
PROJECTION = "masker.image_encoder.decoder.image_proj.proj"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TCL_ANNOTATE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def full() -> dict[str, Tensor]:
    return read_checkpoint(MINI / "full.pth")


def saved(folder: Path, state: dict[str, Any], name: str = "checkpoint.pth", **others: Any) -> Path:
    torch.save({"model": state, **others}, folder / name)
    return folder / name


def learned_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key.startswith(("masker.", "tcl"))}


def test_full_checkpoint_reproduces_the_record(home: Path) -> None:
    record = load_file(MINI / "records.safetensors")
    path = import_checkpoint(MINI / "full.pth", name="mini")
    assert path == home / "models" / "mini.safetensors"
    model = load_model("mini", device="cpu", precision="float32")
    assert (model.name, model.preprocess.window, model.preprocess.stride) == ("mini", 96, 48)
    assert model.metadata.extra["imported_sha256"] == file_sha256(MINI / "full.pth")
    text = model.method.embed_tokens(record["class_tokens"])
    torch.testing.assert_close(text, record["class_emb"], atol=1e-5, rtol=0)
    windows = record["seg/odd/image"]
    masks = score_maps(
        model.method, model.method.encode(windows), text, pamr_guide(model.method, windows), kp_weight=0.3
    )
    torch.testing.assert_close(masks, record["seg/odd/mask_pamr1_kp0.3"], atol=1e-5, rtol=0)
    with pytest.raises(WeightsError, match="no tokenizer"):
        model.method.clip.tokenizer(["sofa"])


def test_minimal_checkpoint_with_its_clip_is_the_full_one(tmp_path: Path, full: dict[str, Tensor]) -> None:
    first = read_model_file(import_checkpoint(MINI / "full.pth", out=tmp_path / "full.safetensors"))
    clip_file = tmp_path / "clip.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in first.clip.items()}, clip_file)
    words = {"type": "words", "words": [f"w{i}" for i in range(46)], "context_length": 8}
    second = read_model_file(
        import_checkpoint(
            MINI / "minimal.pth", out=tmp_path / "minimal.safetensors", clip_file=clip_file, tokenizer=words
        )
    )
    assert second.metadata.clip == first.metadata.clip
    assert first.learned.keys() - second.learned.keys() == {"tcli_loss.logit_scale", "tclf_loss.logit_scale"}
    assert all(torch.equal(tensor, first.learned[name]) for name, tensor in second.learned.items())
    assert load_model(second.path, device="cpu").method.clip.tokenizer(["w3"]).tolist() == [[48, 5, 49, 0, 0, 0, 0, 0]]


def test_minimal_checkpoint_without_its_clip_says_so_when_loaded(home: Path) -> None:
    path = import_checkpoint(MINI / "minimal.pth")
    assert path == home / "models" / "minimal.safetensors"
    assert read_model_file(path).metadata.clip == {}
    with pytest.raises(WeightsError, match="together with its CLIP"):
        load_model("minimal", device="cpu")
    with pytest.raises(WeightsError, match="contains no frozen CLIP"):
        import_checkpoint(MINI / "minimal.pth", with_clip=True)


def test_block_counted_from_zero_and_pamr_buffers(tmp_path: Path, full: dict[str, Tensor]) -> None:
    state = {key.replace(f"{BLOCK}2.", f"{BLOCK}0."): tensor for key, tensor in full.items()}
    state["pamr.aff_x.kernel"] = torch.ones(8, 1, 3, 3)
    assert state.keys() != full.keys()
    path = import_checkpoint(saved(tmp_path, state, optimizer={"step": 3}), out=tmp_path / "zero.safetensors")
    expected = import_checkpoint(MINI / "full.pth", out=tmp_path / "last.safetensors")
    zero, last = read_model_file(path), read_model_file(expected)
    assert zero.learned.keys() == last.learned.keys() == learned_part(full).keys()
    assert all(torch.equal(zero.learned[name], last.learned[name]) for name in last.learned)


def test_half_precision_checkpoint(tmp_path: Path, full: dict[str, Tensor]) -> None:
    path = import_checkpoint(saved(tmp_path, {key: tensor.half() for key, tensor in full.items()}))
    file = read_model_file(path)
    assert all(tensor.dtype == torch.float32 for tensor in [*file.learned.values(), *file.clip.values()])


def drop(*keys: str) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        for key in keys:
            del state[key]

    return change


def put(**values: Any) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.update({key.replace("__", "."): value for key, value in values.items()})


def replace(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.update({key: change(state[key])})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (drop("masker.sim2mask.w", PROJECTION), ["missing", "masker.sim2mask.w", PROJECTION]),
        (drop(f"{BLOCK}2.ln_1.bias"), ["missing", f"{BLOCK}2.ln_1.bias"]),
        (put(masker__extra=torch.ones(1), other=torch.ones(1)), ["unknown", "masker.extra", "other"]),
        (replace(PROJECTION, torch.t), [PROJECTION]),
        (replace("masker.sim2mask.w", lambda x: x[None]), ["masker.sim2mask.w [1] instead of []"]),
        (replace("masker.sim2mask.w", lambda x: x * float("nan")), ["masker.sim2mask.w", "not finite"]),
        (replace("masker.sim2mask.b", lambda x: x.long()), ["masker.sim2mask.b", "floating-point"]),
        (replace("clip_text_encoder.ln_final.bias", lambda x: x / 0), ["clip_text_encoder.ln_final.bias", "finite"]),
        (drop("clip_text_encoder.ln_final.bias"), ["missing", "ln_final.bias"]),
        (drop("clip_image_encoder.clip_proj.proj"), ["missing", "visual.proj"]),
        (put(clip_text_encoder__more=torch.ones(1)), ["unknown", "more"]),
        (replace("clip_text_encoder.ln_final.bias", lambda x: x[1:]), ["ln_final.bias [63] instead of [64]"]),
    ],
)
def test_faults_are_listed(tmp_path: Path, full: dict[str, Tensor], change: Any, expected: list[str]) -> None:
    change(full)
    source = saved(tmp_path, full)
    with pytest.raises(WeightsError) as error:
        import_checkpoint(source, out=tmp_path / "out.safetensors")
    for text in [str(source), *expected]:
        assert text in str(error.value)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("form", ["full", "minimal"])
def test_blocks_of_another_tower(tmp_path: Path, full: dict[str, Tensor], form: str) -> None:
    state = full if form == "full" else learned_part(full)
    for index in (1, 10**9):
        odd = {key.replace(f"{BLOCK}2.", f"{BLOCK}{index}."): tensor for key, tensor in state.items()}
        if form == "minimal" and index == 1:
            continue
        with pytest.raises(WeightsError, match=r"block"):
            import_checkpoint(saved(tmp_path, odd))


def test_no_block_at_all_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"not a checkpoint of any method .*tcl.*contains the tensors fc\.weight"):
        import_checkpoint(saved(tmp_path, {"fc.weight": torch.ones(2, 2)}))


class Bomb:
    """Unpickling creates a file: the sign that code of the checkpoint ran."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("place", ["model", "config", "tensor", "pickle", "legacy"])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, full: dict[str, Tensor], place: str) -> None:
    target, source = tmp_path / "ran", tmp_path / "checkpoint.pth"
    bomb = Bomb(target)
    if place == "pickle":
        source.write_bytes(pickle.dumps(bomb))
    else:
        content: dict[str, Any] = {"model": full}
        if place == "model":
            content["model"] = bomb
        elif place == "tensor":
            content["model"] = {**full, "masker.sim2mask.w": bomb}
        else:
            content["config"] = bomb
        torch.save(content, source, _use_new_zipfile_serialization=place != "legacy")
    with pytest.raises(WeightsError, match="can run any code, so it was not read"):
        import_checkpoint(source, out=tmp_path / "out.safetensors")
    assert not target.exists() and not (tmp_path / "out.safetensors").exists()
    # The payload is live: an unsafe load does run it.
    if place == "pickle":
        pickle.loads(source.read_bytes())
    else:
        torch.load(source, weights_only=False)
    assert target.exists()


def test_objects_are_named_and_the_way_out_works(tmp_path: Path, full: dict[str, Tensor]) -> None:
    source = saved(tmp_path, full, config=Path("somewhere"), name="IN.pth")
    with pytest.raises(WeightsError, match=r"pathlib.*keep only its tensors") as error:
        import_checkpoint(source)
    found = re.search(r"with '(.*)' and import", str(error.value))
    assert found
    code = found[1].replace("IN.pth", str(source)).replace("OUT.pth", str(tmp_path / "OUT.pth"))
    exec(code, {})
    import_checkpoint(tmp_path / "OUT.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_program_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "ViT-B-16.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), source)
    with pytest.raises(WeightsError, match="TorchScript"):
        import_checkpoint(source)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    whole = (MINI / "minimal.pth").read_bytes()
    cases: list[tuple[bytes, str]] = [
        (b"", "complete PyTorch checkpoint|damaged"),
        (b"<html>no</html>", "complete PyTorch checkpoint|damaged"),
        (whole[: len(whole) // 2], "complete PyTorch checkpoint|damaged"),
        (whole[:4], "complete PyTorch checkpoint|damaged"),
        (json.dumps({"model": 1}).encode(), "complete PyTorch checkpoint|damaged"),
    ]
    source = tmp_path / "käputt file.pth"
    for content, message in cases:
        source.write_bytes(content)
        with pytest.raises(WeightsError, match=message) as error:
            import_checkpoint(source)
        assert str(source) in str(error.value)
    for value, message in [
        ({"state_dict": {}}, "found: state_dict"),
        ([1, 2], "found: list"),
        ({"model": [1]}, "found: model"),
        ({"model": {"a": 1, "b": torch.ones(1)}}, "not tensors: a"),
        ({"model": {1: torch.ones(1)}}, "not tensors: 1"),
        ({"model": {}}, "not a checkpoint of any method"),
    ]:
        torch.save(value, source)
        with pytest.raises(WeightsError, match=message):
            import_checkpoint(source)
    with pytest.raises(WeightsError, match="no such file"):
        import_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        import_checkpoint(tmp_path)
    with pytest.raises(WeightsError, match="not a checkpoint of any method"):
        import_checkpoint(MINI / "clip.safetensors")
    with pytest.raises(WeightsError, match="needs no import"):
        import_checkpoint(import_checkpoint(MINI / "full.pth", out=tmp_path / "model.safetensors"))


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", ".hidden", "c:x", "playground"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(WeightsError, match="name"):
        import_checkpoint(MINI / "minimal.pth", name=name)


def test_the_clip_that_is_given_is_kept(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also OpenAI's, which could be downloaded: the model then works without a network."""
    from tcl_core.methods.tcl import upstream

    first = read_model_file(import_checkpoint(MINI / "full.pth", out=tmp_path / "full.safetensors"))
    clip_file = tmp_path / "clip.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in first.clip.items()}, clip_file)
    # The small record in the place of ViT-B/16.
    minimal = torch.load(MINI / "minimal.pth", weights_only=True)["model"]
    sizes = (upstream._sizes(minimal, None), upstream._sizes(minimal, first.metadata.clip["config"]))
    monkeypatch.setattr(upstream, "_VIT_B16", sizes[0])
    alone = read_metadata(import_checkpoint(MINI / "minimal.pth", out=tmp_path / "alone.safetensors"))
    assert "open_clip" in alone.clip
    monkeypatch.setattr(upstream, "_VIT_B16", sizes[1])
    path = import_checkpoint(MINI / "minimal.pth", out=tmp_path / "both.safetensors", clip_file=clip_file)
    kept = read_model_file(path)
    assert "config" in kept.metadata.clip and kept.clip.keys() == first.clip.keys()
    assert not (home / "downloads").exists()
    assert load_model(path, device="cpu").method.clip.depth == kept.metadata.clip["config"]["vision_cfg"]["layers"]


@pytest.mark.parametrize("damage", ["nan", "integers"])
def test_a_bad_clip_file_is_blamed_itself(tmp_path: Path, damage: str) -> None:
    first = read_model_file(import_checkpoint(MINI / "full.pth", out=tmp_path / "full.safetensors"))
    tensors = {name: tensor.contiguous() for name, tensor in first.clip.items()}
    name = "visual.proj"
    tensors[name] = torch.full_like(tensors[name], float("nan")) if damage == "nan" else tensors[name].long()
    clip_file = tmp_path / "clip.safetensors"
    save_file(tensors, clip_file)
    with pytest.raises(WeightsError) as caught:
        import_checkpoint(MINI / "minimal.pth", out=tmp_path / "x.safetensors", clip_file=clip_file)
    assert str(caught.value).startswith(f"{clip_file}: ") and name in str(caught.value)


def test_whole_numbers_that_nobody_needs(tmp_path: Path, full: dict[str, Tensor]) -> None:
    state = {**full, "pamr.steps": torch.tensor(10), "masker.image_encoder.num_batches_tracked": torch.tensor(3)}
    path = import_checkpoint(saved(tmp_path, state), out=tmp_path / "more.safetensors")
    expected = read_model_file(import_checkpoint(MINI / "full.pth", out=tmp_path / "full.safetensors"))
    assert read_model_file(path).learned.keys() == expected.learned.keys()


def test_only_what_is_written_has_to_be_finite(tmp_path: Path, full: dict[str, Tensor]) -> None:
    first = read_model_file(import_checkpoint(MINI / "full.pth", out=tmp_path / "full.safetensors"))
    clip_file = tmp_path / "clip.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in first.clip.items()}, clip_file)
    state = {**full, "pamr.aff_x.kernel": torch.full((2,), float("nan"))}
    path = import_checkpoint(saved(tmp_path, state), out=tmp_path / "more.safetensors")
    assert read_model_file(path).learned.keys() == first.learned.keys()
    # The checkpoint's own CLIP is not used where another file gives it.
    state["clip_text_encoder.ln_final.bias"] = full["clip_text_encoder.ln_final.bias"] / 0
    source = saved(tmp_path, state)
    import_checkpoint(source, out=tmp_path / "given.safetensors", clip_file=clip_file)
    with pytest.raises(WeightsError, match=r"checkpoint\.pth: .*not finite.*clip_text_encoder\.ln_final\.bias"):
        import_checkpoint(source, out=tmp_path / "own.safetensors")


def test_an_import_with_its_clip_segments_without_a_network(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user of ViT-B/16 would: the CLIP is one that could be downloaded."""
    from tcl_core.methods.tcl import upstream

    first = read_model_file(import_checkpoint(MINI / "full.pth", out=tmp_path / "full.safetensors"))
    clip_file = tmp_path / "clip.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in first.clip.items()}, clip_file)
    minimal = torch.load(MINI / "minimal.pth", weights_only=True)["model"]
    # The small record in the place of ViT-B/16.
    monkeypatch.setattr(upstream, "_VIT_B16", upstream._sizes(minimal, first.metadata.clip["config"]))

    def no_network(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    words = {"type": "words", "words": [f"w{i}" for i in range(46)], "context_length": 8}
    import_checkpoint(MINI / "minimal.pth", name="mine", clip_file=clip_file, tokenizer=words)
    segmenter = Segmenter(load_model("mine", device="cpu"))
    vocabulary = Vocabulary.from_options(["w3", "w5"], templates="identity")
    result = segmenter.segment(segmenter.encode(example_image()), vocabulary)
    assert result.label_map.shape == example_image().shape[:2]
    assert not (home / "downloads").exists()
