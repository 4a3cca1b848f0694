"""MGCA-style through the whole engine, its recipes, and its runs of the comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from labelstudio_backend.model_options import ModelOptions
from napari_tcl.model_cache import Engine, ModelChoice
from tcl_core.cli.main import run as command_line
from tcl_core.evaluation.playground import Split, held_out_scene
from tcl_core.methods.mgca import MGCAStyle
from tcl_core.methods.semantic_unit import PIXELS, UNIT
from tcl_core.models import load_model
from tcl_core.playground import Scene
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.vocabulary import Vocabulary
from tests.contract.examples import example_image
from tests.training.runs import in_processes, log_of, tiny_model, tiny_recipe
from tests.training.shards import sample, write_shard
from training.config import ModelSettings, Recipe, TrainPhase, read_recipe
from training.data.shards import ShardSource
from training.engine import Options, run_recipe
from training.playground import compare_methods, units
from training.playground.compare_methods import RUNS, recipe_of
from training.playground.method_tables import table

CONFIG = {"hard_pixels": 4, "region_negatives": 3, "train_last_block": False}
# Captions that a random text tower tells apart, twice each.
CAPTIONS = ("a cat", "a dog on the sofa", "the red sofa", "sky", "a photo of a dog", "red cat on the sofa")


def small_recipe(folder: Path) -> Recipe:
    """Five steps of both stages, from weights whose gates are open: before that, gradients are but rounding."""
    start = folder / "start.safetensors"
    if not start.exists():
        tiny_model(start, MGCAStyle)
    stages = [{"stage": "object", "steps": 2}, {"stage": "all", "steps": 3}]
    model = ModelSettings(method="mgca-style", clip=str(start), config=CONFIG, templates="identity")
    return tiny_recipe(folder, stages=stages).model_copy(update={"model": model})


def train(folder: Path, out: str, accumulate: int = 1) -> Path:
    """Train in this process."""
    data = folder / "data"
    if not data.exists():
        data.mkdir()
        texts = [text.encode() for text in CAPTIONS * 2]
        write_shard(data / "0.tar", [m for number, text in enumerate(texts) for m in sample(number, caption=text)])
    source = ShardSource([data / "0.tar"], folder=folder / "index")
    settings = Options(folder / out, torch.device("cpu"), accumulate=accumulate, quiet=True)
    return run_recipe(small_recipe(folder), source, settings)


def test_training_and_every_front_end(tmp_path: Path) -> None:
    path = train(tmp_path, "out")
    log = log_of(tmp_path / "out")
    assert [line["stage"] for line in log] == ["object", "object", "all", "all", "all"]
    for line in log:
        assert ("region_loss" in line) == ("pixel_loss" in line) == (line["stage"] == "all")
        assert all(np.isfinite(line[name]) for name in ("total", "object_loss", "guarded"))

    options = {"unit_points": 4, "unit_threshold": 0.2}
    model = load_model(path, device="cpu")
    assert isinstance(model.method, MGCAStyle) and model.method.config.hard_pixels == 4
    block = model.method.masker.image_encoder.backbone.transformer["resblocks"]["2"].state_dict()  # type: ignore[index]
    frozen = model.method.clip.visual.transformer.resblocks[2].state_dict()
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in block.items()), "the copied block was trained"
    labels = ["A=cat", "B=sky", "C=dog", "D=red sofa"]
    image, vocabulary = example_image(), Vocabulary.from_options(labels, background=False)
    expected = Segmenter(model, options=options).segment_image(image, vocabulary).label_map
    plain = Segmenter(model).segment_image(image, vocabulary).label_map
    assert len(np.unique(expected)) > 1 and not np.array_equal(expected, plain)

    chosen = ModelOptions(str(path), device="cpu", options=options)
    assert chosen.identity() != ModelOptions(str(path), device="cpu").identity()
    assert np.array_equal(chosen.load().segment_image(image, vocabulary).label_map, expected)
    choice = ModelChoice(str(path), "cpu", options=tuple((name, str(value)) for name, value in options.items()))
    assert np.array_equal(Engine().session(choice, image).segment(vocabulary).label_map, expected)
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "one.png")
    words = ["prelabel", str(tmp_path / "images"), "--no-background", "--format", "semantic-png", "--min-area", "0"]
    words += ["--model", str(path), "--device", "cpu", "--out", str(tmp_path / "masks")]
    words += [part for label in labels for part in ("--label", label)]
    words += [part for name, value in options.items() for part in ("--option", f"{name}={value}")]
    assert command_line(words) == 0
    (found,) = (tmp_path / "masks").rglob("one.png")
    with Image.open(found) as mask:
        assert np.array_equal(np.asarray(mask), expected)


def test_parts_of_a_batch_take_the_same_steps(tmp_path: Path) -> None:
    found = []
    for parts in (1, 3):
        path = train(tmp_path, str(parts), parts)
        found.append(load_model(path, device="cpu").method.learned_state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def _train(folder: str, out: str, accumulate: int) -> None:
    train(Path(folder), out, accumulate)


@pytest.mark.slow
def test_processes_and_parts_take_the_same_steps(tmp_path: Path) -> None:
    _train(str(tmp_path), "one", 1)
    assert in_processes(2, _train, str(tmp_path), "two", 3) == [0, 0]
    one, two = (load_model(tmp_path / out / "small.safetensors", device="cpu").method for out in ("one", "two"))
    for name, tensor in one.learned_state_dict().items():
        torch.testing.assert_close(two.learned_state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_recipes() -> None:
    cc3m, playground = read_recipe("mgca-style-cc3m"), read_recipe("mgca-style-playground")
    for recipe in (cc3m, playground):
        (phase,) = recipe.phases
        assert isinstance(phase, TrainPhase) and recipe.model.method == "mgca-style"
        assert [stage.stage for stage in phase.stages] == ["object", "all"]
        # The copied block stays frozen.
        assert not recipe.model.config.get("train_last_block")
    assert cc3m.phases[0].stage_at(29_999) == "object" and cc3m.phases[0].stage_at(30_000) == "all"  # type: ignore[union-attr]
    # Both are what is compared in the playground, at another length.
    config = recipe_of("mgca-style-pixel", Path("clip.safetensors"), 100, 0).model.config
    assert {key: config[key] for key in playground.model.config} == playground.model.config


# -- the comparison --------------------------------------------------------------------------------------------------


def test_runs_of_the_ablation_differ_in_their_terms_alone() -> None:
    clip = Path("clip.safetensors")
    recipes = {run: recipe_of(run, clip, 100, 0) for run in RUNS if run.startswith(("mgca-style", "tcl"))}
    weights = {
        run: tuple(recipe.model.config.get(f"{name}_weight", 0.1) for name in ("region", "pixel"))
        for run, recipe in recipes.items()
        if run.startswith("mgca-style")
    }
    assert weights == {
        "mgca-style-object": (0.0, 0.0),
        "mgca-style-region": (0.1, 0.0),
        "mgca-style-pixel": (0.1, 0.1),
        "mgca-style-unit": (0.1, 0.1),
    }
    phases = [recipe.phases[0] for recipe in recipes.values()]
    for phase in phases:
        assert isinstance(phase, TrainPhase) and phase.steps == 100
        assert (phase.batch, phase.schedule, phase.optimizer) == (
            phases[0].batch,  # type: ignore[union-attr]
            phases[0].schedule,  # type: ignore[union-attr]
            phases[0].optimizer,  # type: ignore[union-attr]
        )
    assert {run.captions for name, run in RUNS.items() if name in recipes and name != "tcl-two"} == {"brief"}
    # Units are of the inference, so that models of other runs are scored.
    assert {name: run.model for name, run in RUNS.items() if run.options == UNIT} == {
        "tcl-unit": "tcl",
        "mgca-style-unit": "mgca-style-pixel",
    }
    assert all(run.options == PIXELS and run.model is None for run in RUNS.values() if run.options != UNIT)


@pytest.mark.slow
def test_comparison(tmp_path: Path) -> None:
    words = ["--work", str(tmp_path), "--images", "12", "--steps", "2", "--scenes", "1", "--threads", "1"]
    words += ["--workers", "1", "--batch", "4", "--precision", "float32"]
    words += ["--runs", "mgca-style-unit"]
    assert compare_methods.main(words) == 0
    shown = table(tmp_path)
    assert "| mgca-style-unit | 2 | 0 | yes |" in shown
    # What is scored is the model of another run.
    assert [path.parent.name for path in tmp_path.glob("*/*.safetensors")] == ["mgca-style-pixel-2-0"]


@pytest.mark.slow
def test_gain_of_the_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = set()

    def noted(which: Any, index: int, split: Split) -> Scene:
        drawn.add(split)
        return held_out_scene(which, index, split)

    monkeypatch.setattr("tcl_core.evaluation.playground.held_out_scene", noted)
    words = ["--models", "maskclip:playground", "--points", "9", "--thresholds", "0.5", "1", "--scenes", "1"]
    assert units.main([*words, "--threads", "1", "--json", str(tmp_path / "units.json")]) == 0
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| `maskclip")]
    assert [line[1] for line in lines] == ["no", "yes"]
    # Single pixels gain nothing.
    assert [line[-1] for line in lines] == ["+0.0 |"] * 2
    content = json.loads((tmp_path / "units.json").read_text())
    assert [entry["options"]["unit_points"] for entry in content["scores"]] == [0, 9, 9]
    # Settings are chosen on scenes of their own.
    assert drawn == {"validation"}

    # What is there is not scored again, and what is of other scenes is not mixed with it.
    drawn.clear()
    assert units.main([*words, "--json", str(tmp_path / "units.json")]) == 0
    assert not drawn and capsys.readouterr().out.splitlines()[2:] == [" | ".join(line) for line in lines]
    words[-1] = "2"
    assert units.main([*words, "--json", str(tmp_path / "units.json")]) == 2
    assert "its scores are of other scenes" in capsys.readouterr().err
