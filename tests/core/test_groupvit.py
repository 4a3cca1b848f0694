"""A GroupViT from its checkpoint to regions; the extra ``groupvit`` is needed where encoders are made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tcl_core.errors import SettingsError, WeightsError
from tcl_core.methods.groupvit import GroupViT, GroupViTConfig
from tcl_core.methods.groupvit.head import background_plane, group_maps, group_scores, scores_of_pixels
from tcl_core.models import load_model
from tcl_core.models.checkpoints import import_checkpoint
from tcl_core.models.manifest import load_manifest
from tcl_core.models.registry import list_models
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.vocabulary import Vocabulary
from tests.contract.examples import example_image, example_windows, model_of

SMALL = {"width": 64, "heads": 1, "depths": (1, 1, 1), "group_tokens": (4, 3, 0), "output_groups": (4, 3)}
SMALL |= {"image_size": 32, "text_width": 64, "text_heads": 1, "text_layers": 1, "embed_dim": 8, "hidden_dim": 16}


# -- the head --------------------------------------------------------------------------------------------------------


def test_later_assignments_come_from_the_left() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.rand(2, *size, generator=generator).softmax(dim=1) for size in ((4, 6), (3, 4)))
    found = group_maps([first, second], (2, 3))
    assert torch.allclose(found.flatten(2), torch.bmm(second, first), atol=1e-6)
    assert torch.allclose(found.sum(dim=1), torch.ones(2, 2, 3), atol=1e-6)


def test_names_that_the_image_does_not_keep_score_nothing() -> None:
    texts, image = torch.eye(4), torch.tensor([[0.9, 0.1, 0.8, 0.0]])
    groups, scale = torch.eye(4)[None], torch.tensor(5.0)
    kept = group_scores(groups, image, texts, scale, top_k=2)
    assert torch.equal(kept[..., 1], torch.zeros(1, 4)) and torch.equal(kept[..., 3], torch.zeros(1, 4))
    assert float(kept[0, 0, 0]) > float(kept[0, 2, 0]) > 0
    shares = torch.softmax(5 * torch.eye(4), dim=1)
    for everything in (0, 4, 9):
        assert torch.allclose(group_scores(groups, image, texts, scale, everything)[0], shares * shares)


def test_the_best_group_is_never_background() -> None:
    maps = torch.tensor([[[[0.9, 0.2, 0.2]], [[0.1, 0.8, 0.8]]]])
    pixels = scores_of_pixels(maps, torch.tensor([[[0.3, 0.1], [0.2, 0.05]]]))
    assert pixels[0, 0, 0].tolist() == pytest.approx([0.3, 0.2, 0.2])
    assert background_plane(pixels, 0.95)[0, 0, 0].tolist() == [0, 1, 1]
    assert background_plane(pixels, 0.25)[0, 0, 0].tolist() == [0, 1, 1]
    assert background_plane(pixels, 0.1)[0, 0, 0].tolist() == [0, 0, 0]


# -- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TCL_ANNOTATE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def small() -> GroupViT:
    pytest.importorskip("transformers", reason="the extra groupvit is not installed")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GroupViT(GroupViTConfig(**SMALL)).requires_grad_(False)  # type: ignore[arg-type]


def hub_tensors(method: GroupViT) -> dict[str, Tensor]:
    """As the hub's files hold them, with counters."""
    return {name: tensor.clone() for name, tensor in method.encoders.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".bin", ".safetensors", ".pth"])
def test_checkpoints_are_imported(
    small: GroupViT, tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, tensors = tmp_path / f"file{ending}", hub_tensors(small)
    if ending == ".safetensors":
        save_file(tensors, source)
    else:
        torch.save(tensors if ending == ".bin" else {"model": tensors, "epoch": 3}, source)
    import_checkpoint(source, name="mine", license="NVIDIA")
    model = load_model("mine", device="cpu", precision="float32")
    assert "research and evaluation" in caplog.text
    assert (model.templates, model.preprocess.window, model.preprocess.stride) == ("simple", 64, 32)
    assert model.background_threshold == {"pamr": 0.5, "plain": 0.5}
    windows = example_windows(1)
    expected, found = small.encode(windows), model.method.encode(windows)
    # Mapped weights lie elsewhere in memory, where the processor may add in another order.
    for name, tensor in expected.tensors().items():
        torch.testing.assert_close(found.tensors()[name], tensor, rtol=0, atol=1e-6)
    row = next(row for row in list_models() if row.name == "mine")
    assert row.installed and row.description == "imported"
    prompts = model.method.embed_prompts(["a cat", "grass"], ("a photo of a {}.",))
    assert torch.allclose(prompts.text, small.embed_prompts(["a cat", "grass"], ("a photo of a {}.",)).text)  # type: ignore[attr-defined]


def test_checkpoints_that_do_not_fit(small: GroupViT, tmp_path: Path) -> None:
    tensors = hub_tensors(small)
    torch.save({name: x for name, x in tensors.items() if "group_projector" not in name}, tmp_path / "less.bin")
    with pytest.raises(WeightsError, match="less.bin: .*missing: .*group_projector"):
        import_checkpoint(tmp_path / "less.bin")
    torch.save({name: x for name, x in tensors.items() if "position_embeddings" not in name}, tmp_path / "none.bin")
    with pytest.raises(WeightsError, match="none.bin: These tensors are no GroupViT; missing: .*position_embeddings"):
        import_checkpoint(tmp_path / "none.bin")
    assert GroupViT.from_upstream({"a": torch.zeros(1)}, {}) is None


def test_sizes_that_cannot_be() -> None:
    for wrong, part in [
        ({"depths": [1]}, "number for each stage"),
        ({"heads": 5}, "multiple of its heads"),
        ({"patch_size": 0}, "patch_size must be at least 1"),
        ({"no": 1}, "unknown keys: no"),
    ]:
        with pytest.raises(SettingsError, match=part):
            GroupViTConfig.from_dict({**GroupViTConfig(**SMALL).to_dict(), **wrong})  # type: ignore[arg-type]


def test_the_manifest_names_its_terms() -> None:
    for name in ("groupvit-gcc-yfcc", "groupvit-gcc-redcaps"):
        entry = load_manifest().models[name]
        assert "non-commercial" in entry.license and entry.checkpoint is not None and entry.checkpoint.hub is not None
        with pytest.raises(WeightsError, match=f"models fetch {name}"):
            load_model(name)


# -- without the extra -----------------------------------------------------------------------------------------------


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.models.groupvit", None)
    with pytest.raises(SettingsError, match=r"GroupViT needs transformers .*tcl-annotate\[groupvit\]"):
        GroupViT.example()


# -- segmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_option_turns_refinement_on(small: GroupViT) -> None:
    vocabulary = Vocabulary.from_options(["cat", "sky"], background=False)
    maps: dict[Any, Any] = {}
    for pamr in (False, True):
        for refine in (False, True):
            segmenter = Segmenter(model_of(GroupViT.example()), refine=refine, options={"pamr": pamr})
            maps[pamr, refine] = segmenter.segment_image(example_image(), vocabulary).score_map
    assert np.array_equal(maps[False, False], maps[False, True]) and np.array_equal(
        maps[False, False], maps[True, False]
    )
    assert not np.array_equal(maps[True, True], maps[True, False])
