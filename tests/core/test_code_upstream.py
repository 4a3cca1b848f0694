"""Import of checkpoints in the layout of the authors' code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from tcl_core.errors import WeightsError
from tcl_core.methods.code import CoDe, CoDeConfig
from tcl_core.models import fetch_model, list_models, load_model
from tcl_core.models.checkpoints import import_checkpoint
from tcl_core.models.modelfile import read_metadata, read_model_file
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.vocabulary import Vocabulary
from tests.contract.examples import example_image
from tests.core.code_records import FOLDER, CodeRecord, missing_files

VISION = {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 64, "layers": 3}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
KEYS = FOLDER.parent / "code_vitb16_state_dict_keys.txt"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TCL_ANNOTATE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def small(**config: Any) -> CoDe:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        code = CoDe(FrozenClip(open_clip.CLIP(64, VISION, TEXT, quick_gelu=True)), CoDeConfig(**config))
        with torch.no_grad():
            for name, parameter in code.named_parameters():
                if name.endswith("gate.gate"):
                    parameter.fill_(0.5)
                elif not name.startswith("clip.") and parameter.ndim:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return code


def official_state(code: CoDe) -> dict[str, Tensor]:
    """The state dict that the authors' program would save: CLIP's towers several times, and PAMR's constants."""
    clip = {name: tensor for name, tensor in code.clip.model.state_dict().items() if name != "attn_mask"}
    text = {name: tensor for name, tensor in clip.items() if not name.startswith("visual.") and name != "logit_scale"}
    state = dict(code.learned_state_dict())
    state |= {f"frozen_clip.{name}": tensor for name, tensor in clip.items()}
    state["clip_text_encoder.prompt_learner.token_prefix"] = torch.zeros(1, 1, 64)
    state |= {f"clip_text_encoder.prompt_learner.clip_model.{name}": tensor for name, tensor in text.items()}
    state |= {
        f"clip_text_encoder.text_encoder.{name}": tensor
        for name, tensor in text.items()
        if name != "token_embedding.weight"
    }
    for name, tensor in clip.items():
        if name == "visual.proj":
            state["clip_image_encoder.clip_proj.proj"] = tensor
        elif name.startswith("visual.ln_post."):
            state[f"clip_image_encoder.clip_proj.ln.{name.removeprefix('visual.ln_post.')}"] = tensor
        elif name.startswith("visual."):
            state[f"clip_image_encoder.clip_visual.{name.removeprefix('visual.')}"] = tensor
    return state | {f"pamr.aff_{part}.kernel": torch.ones(8, 1, 3, 3) for part in ("x", "m", "std")}


def saved(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"model": state, "step": 7}, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"context_tokens": 5, "region_prompt_size": 48}, {"context_tokens": 5, "region_prompt_size": 48}),
        (
            {"ie_freeze": 1, "decoder_layers": 1, "decoder_double": True},
            {"ie_freeze": 1, "decoder_layers": 1, "decoder_double": True},
        ),
    ],
    ids=["published", "other prompts", "other decoder"],
)
def test_import_and_segment(tmp_path: Path, config: dict[str, Any], expected: dict[str, Any]) -> None:
    code = small(**config)
    path = import_checkpoint(saved(tmp_path, official_state(code)), name="mine")
    assert read_metadata(path).method_config == ({**CoDeConfig(**expected).to_dict()} if expected else {})
    model = load_model("mine", device="cpu", precision="float32")
    assert isinstance(model.method, CoDe)
    learned = model.method.learned_state_dict()
    assert all(torch.equal(learned[name], tensor) for name, tensor in code.learned_state_dict().items())
    found = model.method.embed_prompts(["potted plant"], ["a photo of a {}."])
    code.clip.tokenizer = model.method.clip.tokenizer
    wanted = code.embed_prompts(["potted plant"], ["a photo of a {}."])
    torch.testing.assert_close(found.text, wanted.text)
    torch.testing.assert_close(found.preserved, wanted.preserved)
    segmenter = Segmenter(model)
    result = segmenter.segment(segmenter.encode(example_image()), Vocabulary.from_options(["A=cat", "B=grass"]))
    assert result.label_map.shape == example_image().shape[:2]


def test_published_name(tmp_path: Path, home: Path) -> None:
    for attempt in (lambda: load_model("code-vit-b16"), lambda: fetch_model("code-vit-b16")):
        with pytest.raises(WeightsError, match="checkpoint.pth.* --name code-vit-b16"):
            attempt()
    row = next(row for row in list_models() if row.name == "code-vit-b16")
    assert not row.installed and row.license == "none stated"
    path = import_checkpoint(saved(tmp_path, official_state(small())), name="code-vit-b16")
    assert path == home / "models" / "code-vit-b16.safetensors"
    assert [row.installed for row in list_models() if row.name == "code-vit-b16"] == [True]
    assert load_model("code-vit-b16", device="cpu").name == "code-vit-b16" and fetch_model("code-vit-b16") == path
    with pytest.raises(WeightsError, match="not a checkpoint of the method code"):
        tcl = Path(__file__).parents[1] / "data" / "tcl_mini" / "full.pth"
        import_checkpoint(tcl, name="code-vit-b16")


def test_what_inference_does_not_need_may_be_missing(tmp_path: Path) -> None:
    code = small()
    state = {name: x for name, x in official_state(code).items() if name not in CoDe.optional_keys}
    model = load_model(import_checkpoint(saved(tmp_path, state), name="mine"), device="cpu")
    texts = model.method.embed_prompts(["cat"], ["{}"])
    code.clip.tokenizer = model.method.clip.tokenizer
    torch.testing.assert_close(texts.text, code.embed_prompts(["cat"], ["{}"]).text)


def test_temperature_of_clip_may_be_missing(tmp_path: Path) -> None:
    state = official_state(small())
    del state["frozen_clip.logit_scale"]
    file = read_model_file(import_checkpoint(saved(tmp_path, state), name="mine"))
    assert float(file.clip["logit_scale"]) == pytest.approx(math.log(100))


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    for change, message in [
        (lambda s: s.pop("masker.sim2mask.w"), "missing: masker.sim2mask.w"),
        (lambda s: s.update(novelty=torch.ones(1)), "unknown: novelty"),
        (lambda s: s.update(bg_text=torch.ones(5, 1, 64)), r"bg_text \[5, 1, 64\] instead of \[77, 1, 64\]"),
        (lambda s: s.pop("frozen_clip.ln_final.bias"), "missing: ln_final.bias"),
        (lambda s: s.update({"masker.sim2mask.b": torch.tensor(float("nan"))}), "not finite.*masker.sim2mask.b"),
    ]:
        state = official_state(small())
        change(state)
        with pytest.raises(WeightsError, match=message) as error:
            import_checkpoint(saved(tmp_path, state), name="mine")
        assert "checkpoint.pth" in str(error.value)


def test_a_checkpoint_without_its_clip_is_taken_for_the_published_one(tmp_path: Path) -> None:
    state = {name: x for name, x in official_state(small()).items() if not name.startswith("frozen_clip.")}
    # Its blocks do not fit ViT-B/16.
    with pytest.raises(WeightsError, match="tower of 12"):
        import_checkpoint(saved(tmp_path, state), name="mine")


def test_layout_of_the_record() -> None:
    """Every tensor of the official layout is learned, a copy of CLIP's, or PAMR's."""
    if missing_files(FOLDER):
        pytest.skip(f"no record of CoDe at {FOLDER}; name one with CODE_PARITY_DIR")
    record = CodeRecord(FOLDER)
    learned = record.model().learned_state_dict()
    shapes = record.shapes
    rest = {name for name in shapes if name not in learned}
    assert all(list(learned[name].shape) == shapes[name] for name in learned)
    assert {name.partition(".")[0] for name in rest} <= {
        "frozen_clip",
        "clip_text_encoder",
        "clip_image_encoder",
        "pamr",
    }


def test_layout_of_the_published_model() -> None:
    if not KEYS.is_file():
        pytest.skip(f"no list of the official tensors at {KEYS}")
    listed = {line.split()[0] for line in KEYS.read_text().splitlines() if "." in line or "_" in line}
    with torch.device("meta"):
        code = CoDe(FrozenClip(open_clip.CLIP(**open_clip.get_model_config("ViT-B-16-quickgelu"))))
    assert set(code.learned_state_dict()) <= listed
    frozen = {name.removeprefix("frozen_clip.") for name in listed if name.startswith("frozen_clip.")}
    assert frozen == {name for name in code.clip.model.state_dict() if name != "attn_mask"}
