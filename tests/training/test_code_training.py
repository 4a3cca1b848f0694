"""CoDe through the whole engine, and the comparison with TCL."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tcl_core.errors import SettingsError
from tcl_core.methods.code import CoDe
from tcl_core.models import load_model
from tcl_core.models.metadata import ModelMetadata, Preprocess
from tcl_core.models.modelfile import read_model_file, write_model_file
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import split_words
from tcl_core.vocabulary import Vocabulary
from tests.contract.examples import example_image
from tests.docs.pages import REPOSITORY
from tests.training.runs import in_processes
from tests.training.shards import sample, write_shard
from training.config import Recipe, ScheduleSettings, Stage, TrainPhase, read_recipe
from training.data.shards import ShardSource
from training.engine import Interruption, Options, StoppedError, run_recipe
from training.model import build
from training.playground import compare_methods, publish_methods
from training.playground.compare_methods import RUNS, recipe_of
from training.playground.data import ImageSet
from training.playground.method_data import SceneSource, draw, extended_clip
from training.playground.method_tables import table
from training.preparation import dry_run
from training.step import Stepper

CPU = torch.device("cpu")
CAPTIONS = ("a cat and a dog", "the red sofa", "dog on the sofa", "sky and cat", "the dog", "a sofa and the sky")


def tiny_recipe(folder: Path, **config: Any) -> Recipe:
    """Four steps of both stages."""
    code = CoDe.example()
    clip: Any = code.clip.model
    sizes = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 24, "head_width": 8, "layers": 3},
        "text_cfg": {"context_length": 10, "vocab_size": clip.vocab_size, "width": 16, "heads": 2, "layers": 2},
    }
    metadata = ModelMetadata(
        name="tiny",
        preprocess=Preprocess((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), short_side=64, max_long_side=128, window=32, stride=16),
        method="code",
        method_config=code.config_to_dict(),
        clip={"config": sizes},
        tokenizer=code.clip.tokenizer.to_dict(),  # type: ignore[union-attr]
        templates="identity",
    )
    path = folder / "tiny.safetensors"
    if not path.exists():
        write_model_file(path, metadata, code.learned_state_dict(), clip.state_dict())
    phase = {
        "kind": "train",
        "name": "main",
        "stages": [{"stage": "ust", "steps": 2}, {"stage": "full", "steps": 2}],
        "batch": 4,
        "schedule": {"lr": 0.01, "warmup": 1},
        "precision": "float32",
        "augmentation": {"size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        "log_every": 1,
        "save_every": 1,
    }
    model = {"method": "code", "clip": str(path), "new_weights": True, "config": config, "templates": "identity"}
    return Recipe.model_validate({"name": "small", "model": model, "phases": [phase]})


def pairs(folder: Path, captions: tuple[str, ...] = CAPTIONS) -> ShardSource:
    folder.mkdir(exist_ok=True)
    members = [m for number, text in enumerate(captions * 2) for m in sample(number, caption=text.encode())]
    path = folder / "00000.tar"
    return ShardSource([path if path.exists() else write_shard(path, members)], folder=folder / "index")


class StopAfter(Interruption):
    """Asks for the end after some steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    @property
    def asked(self) -> bool:  # type: ignore[override]
        self._left -= 1
        return self._left < 0


def test_training_and_resuming(tmp_path: Path) -> None:
    recipe, source = tiny_recipe(tmp_path), pairs(tmp_path / "data")
    whole = run_recipe(recipe, source, Options(tmp_path / "whole", CPU, quiet=True))
    log = [json.loads(line) for line in (tmp_path / "whole" / "main.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log] == ["ust", "ust", "full", "full"]
    assert all(np.isfinite(line[name]) for line in log for name in ("total", "kg_loss", "tseg_loss", "hcl_loss"))
    # Two of six captions name one thing.
    assert log[-1]["replaced"] > 0
    with pytest.raises(StoppedError):
        run_recipe(recipe, source, Options(tmp_path / "parts", CPU, quiet=True), StopAfter(2))
    parts = run_recipe(recipe, source, Options(tmp_path / "parts", CPU, quiet=True))
    assert parts.read_bytes() == whole.read_bytes()
    model = load_model(whole, device="cpu")
    assert isinstance(model.method, CoDe)
    segmenter = Segmenter(model)
    result = segmenter.segment(segmenter.encode(example_image()), Vocabulary.from_options(["A=cat", "B=sky"]))
    assert result.label_map.shape == example_image().shape[:2]


@pytest.mark.slow
def test_parts_of_a_batch_take_the_same_steps(tmp_path: Path) -> None:
    recipe, source = tiny_recipe(tmp_path, negatives="not named"), pairs(tmp_path / "data")
    found = []
    for parts in (1, 2):
        out = tmp_path / str(parts)
        found.append(load_model(run_recipe(recipe, source, Options(out, CPU, accumulate=parts, quiet=True))).method)
    for name, tensor in found[0].learned_state_dict().items():
        torch.testing.assert_close(found[1].learned_state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_frozen_blocks_run_once_for_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are embedded twice, but not what no gradient passes through."""
    code = CoDe.example()
    prepared = [
        code.prepare({"image": torch.rand(3, 32, 32), "caption": text}, np.random.default_rng(0))
        for text in code.example_prompts()
    ]
    settings = {"stages": [Stage(stage="ust", steps=1)], "batch": 4, "schedule": ScheduleSettings(lr=1e-3)}
    phase = TrainPhase.model_validate({"name": "test", "precision": "float32", **settings})
    counted = []
    tokens = FrozenClip.tokens_after

    def counting(self: FrozenClip, image: Tensor, blocks: int) -> Tensor:
        if blocks == code.first_block:
            counted.append(len(image))
        return tokens(self, image, blocks)

    monkeypatch.setattr(FrozenClip, "tokens_after", counting)
    Stepper(code, phase, CPU, 2).step(0, code.collate(prepared))
    assert counted == [2, 2]


def _train(folder: str, out: str, accumulate: int) -> None:
    settings = Options(Path(folder) / out, CPU, accumulate=accumulate, quiet=True)
    run_recipe(tiny_recipe(Path(folder)), pairs(Path(folder) / "data"), settings)


@pytest.mark.slow
def test_processes_and_parts_take_the_same_steps(tmp_path: Path) -> None:
    _train(str(tmp_path), "one", 1)
    assert in_processes(2, _train, str(tmp_path), "two", 2) == [0, 0]
    one, two = (load_model(tmp_path / out / "small.safetensors", device="cpu").method for out in ("one", "two"))
    for name, tensor in one.learned_state_dict().items():
        torch.testing.assert_close(two.learned_state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_captions_that_name_too_little(tmp_path: Path) -> None:
    source = pairs(tmp_path / "data", ("the dog",) * 4)
    reason = "the caption 'the dog' cannot be used: the setting nouns asks for 2 things, and it names dog"
    with pytest.raises(SettingsError, match=f"pairs in a row cannot be used.*{reason}"):
        run_recipe(tiny_recipe(tmp_path), source, Options(tmp_path / "out", CPU, quiet=True))


def test_a_missing_tagger_is_found_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(caption: str) -> list[str]:
        raise SettingsError("no tagger here")

    monkeypatch.setattr("tcl_core.methods.code.nouns._nouns_by_nltk", absent)
    # Whether NLTK is installed makes no difference.
    monkeypatch.setattr("tcl_core.methods.code.training.missing_data", tuple)
    recipe = tiny_recipe(tmp_path, tagger="nltk")
    with pytest.raises(SettingsError, match="^no tagger here$"):
        run_recipe(recipe, pairs(tmp_path / "data"), Options(tmp_path / "out", CPU, workers=1, quiet=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tagger": "nltk"}, "^no tagger here$"),
        ({"nouns": 0}, "The CoDe setting nouns is 0"),
        ({"tager": "rules"}, "Unknown CoDe settings: tager. Did you mean tagger"),
    ],
)
def test_settings_are_checked_before_a_clip_is_downloaded(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(caption: str) -> list[str]:
        raise SettingsError("no tagger here")

    def refuse(*_: object) -> None:
        raise AssertionError("a CLIP was looked for")

    monkeypatch.setattr("tcl_core.methods.code.nouns._nouns_by_nltk", absent)
    monkeypatch.setattr("tcl_core.methods.code.training.missing_data", tuple)
    monkeypatch.setattr("training.model.find_clip", refuse)
    recipe = read_recipe("code-cc3m-cc12m")
    phase = recipe.phases[-1]
    assert isinstance(phase, TrainPhase)
    with pytest.raises(SettingsError, match=message):
        build(
            recipe.model_copy(update={"model": recipe.model.model_copy(update={"config": settings})}),
            phase.augmentation,
        )


def test_settings_that_do_not_fit_the_weights_to_start_from(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, context_tokens=3, area_prior=0.5)
    phase = recipe.phases[-1]
    assert isinstance(phase, TrainPhase)
    build(recipe, phase.augmentation)
    started = recipe.model_copy(update={"model": recipe.model.model_copy(update={"new_weights": False})})
    with pytest.raises(SettingsError, match=r"of tiny do not fit .*context_tokens=3 \(its own: 4\)") as caught:
        build(started, phase.augmentation)
    assert "model.new_weights=true" in str(caught.value) and "tagger" not in str(caught.value)


def test_playground_recipe() -> None:
    recipe = read_recipe("code-playground")
    # That of the comparison, but for what shards and a small text tower ask for.
    config = recipe_of("code", Path("clip.safetensors"), 100, 0).model.config
    own = {**recipe.model.config}
    assert (own.pop("context_tokens"), own.pop("nouns")) == (4, 1) and own == config
    phase = recipe.phases[-1]
    assert isinstance(phase, TrainPhase)
    assert isinstance(build(recipe, phase.augmentation).method, CoDe)


def test_dry_run_counts_captions_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Two of six captions name one thing.
    dry_run(tiny_recipe(tmp_path), pairs(tmp_path / "data"), Options(tmp_path / "out", CPU, quiet=True))
    text = capsys.readouterr().out
    assert re.search(r"    [1-9] of \d+ pairs would be replaced by others: .* cannot learn from their captions", text)
    dry_run(tiny_recipe(tmp_path, nouns=1), pairs(tmp_path / "data"), Options(tmp_path / "out", CPU, quiet=True))
    assert "replaced" not in capsys.readouterr().out


def test_recipe_of_the_paper() -> None:
    recipe = read_recipe("code-cc3m-cc12m")
    (phase,) = recipe.phases
    assert recipe.model.method == "code" and phase.batch == 64 and phase.steps == 50_000  # type: ignore[union-attr]
    schedule = phase.schedule  # type: ignore[union-attr]
    assert schedule.lr == pytest.approx(3.2e-4 * 64 / 4096) and schedule.min_lr == pytest.approx(4e-5 * 64 / 4096)
    assert phase.stage_at(29_999) == "ust" and phase.stage_at(30_000) == "full"  # type: ignore[union-attr]


# -- the comparison --------------------------------------------------------------------------------------------------


def test_longer_text_tower(tmp_path: Path) -> None:
    """Texts that fitted before have the embeddings that they had, and a learned prompt of 16 vectors fits."""
    before, after = load_model("playground"), load_model(extended_clip(tmp_path / "longer.safetensors", 24))
    clip, longer = before.method.towers["clip"], after.method.towers["clip"]
    assert longer.context_length == 24
    texts = ["a red cup", "a photo of many sofas.", "grass"]
    expected = clip.encode_text(clip.tokenizer(texts))
    torch.testing.assert_close(longer.encode_text(longer.tokenizer(texts)), expected, atol=1e-5, rtol=1e-5)
    table = longer.model.positional_embedding
    # Behind the start and 16 learned vectors: where the noun and the end of "a cup" are.
    assert torch.equal(table[17:19], table[2:4])
    code = CoDe.from_config({"clip": longer}, {"ie_freeze": 3, "tagger": "rules"})
    assert code.embed_prompts(["cup", "sofa"], ["{}"]).text.shape == (2, clip.embed_dim)


@pytest.mark.slow
def test_comparison(tmp_path: Path) -> None:
    images = ImageSet(count=12, size=64, objects=(1, 3), radius=(12, 30), plain=0.1, seed=1)
    draw(tmp_path / "images", images, workers=1)
    source = SceneSource(tmp_path / "images", "two")
    assert 8 <= len(source) <= 12 and source.identity() != SceneSource(tmp_path / "images", "brief").identity()
    assert all(len(split_words(source.read(index).caption)) <= 14 for index in range(len(source)))
    clip = extended_clip(tmp_path / "clip.safetensors", 24)
    for run in RUNS:
        recipe = recipe_of(run, clip, 4, 0)
        assert recipe.phases[0].steps == 4  # type: ignore[union-attr]
    assert (
        compare_methods.main(
            [
                "--work",
                str(tmp_path),
                "--images",
                "12",
                "--steps",
                "2",
                "--scenes",
                "1",
                "--threads",
                "1",
                "--runs",
                "code",
            ]
            + ["--batch", "4"]
        )
        == 0
    )
    assert "| code | 2 | 0 | yes |" in table(tmp_path)

    checkout = tmp_path / "checkout"
    for place in ("docs/code.md", "docs/mgca.md", "training/playground/results/table.json"):
        copy = checkout / place
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((REPOSITORY / place).read_bytes())
    assert publish_methods.main(["--work", str(tmp_path), "--repository", str(checkout)]) == 0
    published = json.loads((checkout / "training/playground/results/methods.json").read_text())
    (run,) = published["runs"]
    assert (run["run"], run["steps"], run["seed"], run["batch"]) == ("code", 2, 0, 4)
    assert run["weights_sha256"] == read_model_file(tmp_path / "code-2-0" / "code-2-0.safetensors").sha256
    # The test's CLIP is that of the embedded model, which the table is of, too.
    page = (checkout / "docs/code.md").read_text()
    assert "| CoDe | 2 | 1 | " in page and "The CLIP is that of the embedded weights" in " ".join(page.split())


def test_drawing_that_is_stopped_or_cut_off_is_done_again(tmp_path: Path) -> None:
    images = ImageSet(count=12, size=64, objects=(1, 3), radius=(12, 30), plain=0.1, seed=1)

    def stop() -> None:
        raise StoppedError("asked to")

    with pytest.raises(StoppedError):
        draw(tmp_path, images, 0, stop)
    assert not (tmp_path / "captions.json").exists()
    draw(tmp_path, images, 0)
    whole = (tmp_path / "captions.json").read_bytes()
    (tmp_path / "captions.json").write_bytes(whole[:-100])
    draw(tmp_path, images, 0)
    assert (tmp_path / "captions.json").read_bytes() == whole
    # Drawn once.
    draw(tmp_path, images, 0, stop)
