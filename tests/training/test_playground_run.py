"""The embedded model's recipe at a tiny size: interrupted in every way, it ends with the same bytes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from tcl_core.errors import SettingsError
from tcl_core.evaluation.playground import evaluate_playground
from tcl_core.models import load_model
from tcl_core.models.modelfile import read_model_file
from tcl_core.playground import caption_words
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.towers.tokenizer import WordTokenizer
from tcl_core.vocabulary import Vocabulary
from tests.docs.pages import REPOSITORY
from tests.training.tiny_playground import READER, TINY, TRUTH, short
from training.journal import Code, read_journal, spent
from training.phase import Interruption, StoppedError, to_device
from training.playground import tables
from training.playground.clip import ClipBatch, clip_batches
from training.playground.data import draw_images
from training.playground.feed import StepFeed
from training.playground.pages import parts_of, with_parts
from training.playground.recipe import RECIPE
from training.playground.run import begin, ground, run

CODE = Code("0" * 40)
PARTS = [
    "words of the captions",
    "images 1",
    "whitening",
    "clip-1-objects",
    "clip-2-collages",
    "images 2",
    "clip-3-scenes",
    "tcl-a",
    "tcl-b",
    "color directions",
    "model file",
]
_TRAIN = """
import sys
from pathlib import Path
import torch
from tests.training.test_playground_run import CODE, RECIPE, begin, run, short
from training.phase import Interruption
torch.set_num_threads(1)
if __name__ == "__main__":
    with Interruption().listening() as interruption:
        run(begin(short(RECIPE), Path(sys.argv[1]), "float32", CODE, interruption, workers=0))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(begin(short(RECIPE), folder, "float32", CODE, quiet=True, workers=0))
    finally:
        torch.set_num_threads(threads)
    return folder


def _events(folder: Path) -> list[str]:
    return [entry["event"] for entry in read_journal(folder / "run.jsonl")]


@pytest.mark.slow
def test_a_run_makes_a_model_and_records_itself(whole: Path) -> None:
    out = whole / "playground.safetensors"
    ends = [torch.load(whole / f"{name}.ckpt", weights_only=True)["learned"] for name in ("tcl-a", "tcl-b")]
    name = "masker.image_encoder.decoder.image_proj.proj"
    assert not torch.equal(ends[0][name], ends[1][name])
    file = read_model_file(out)
    mean = 0.6 * ends[0][name] + 0.4 * ends[1][name]
    assert torch.allclose(file.learned[name], mean, rtol=1e-3, atol=1e-6)
    assert file.debiasing_axes is not None and file.debiasing_axes.shape == (RECIPE.debias_axes, 192)
    words = next(entry for entry in read_journal(whole / "run.jsonl") if entry["event"] == "words")
    assert file.metadata.debiasing == {"words": words["colors"], "text_set": "text"}
    assert file.metadata.background_names == [*words["things"], *words["stuff"]]
    assert words["colors"] == list(TRUTH.colors) and set(words["things"]) <= set(TRUTH.things)
    assert out.stat().st_size < 25e6
    segmenter = Segmenter(load_model(str(out)))
    vocabulary = Vocabulary.from_options(["cat", "grass"], background=False)
    assert segmenter.segment_image(np.full((40, 50, 3), 90, np.uint8), vocabulary).label_map.shape == (40, 50)
    entries = read_journal(whole / "run.jsonl")
    assert (entries[0]["event"], entries[0]["commit"], entries[0]["modified"]) == ("start", CODE.commit, [])
    assert entries[0]["machine"]["threads"] == 1 and entries[0]["packages"]["torch"] == torch.__version__.split("+")[0]
    assert entries[-1]["event"] == "finished" and entries[-1]["sha256"] == file.sha256
    times = spent(entries)
    assert sorted(times) == sorted(PARTS)
    assert all(found.wall > 0 and found.cpu > 0 for name, found in times.items() if name != "model file")
    steps = {entry["part"]: entry for entry in entries if entry["event"] == "step"}
    assert list(steps) == [name for name in PARTS if name.startswith(("clip", "tcl"))]
    assert all(entry["step"] == 3 and entry["total"] > 0 for entry in steps.values())


def test_batches_are_the_same_whichever_process_makes_them() -> None:
    tokenizer = WordTokenizer(caption_words(()), 16)
    images = draw_images(TINY, READER, workers=0)
    phase = short(RECIPE).clip_phases[2]
    make = clip_batches(phase, lambda _: images, tokenizer, (), 7, 8)
    with closing(StepFeed(make, 3, 0, 1)) as own, closing(StepFeed(make, 3, 2, 1)) as forked:
        for _ in range(2):
            one, other = next(own), next(forked)
            assert torch.equal(one.images, other.images) and one.shift == other.shift
            for name in ("captions", "negatives"):
                assert all(map(torch.equal, getattr(one, name), getattr(other, name)))
    for feed in (own, forked):
        with pytest.raises(StopIteration):
            next(feed)


def test_a_process_that_makes_batches_and_ends_is_told_of() -> None:
    with closing(StepFeed(lambda step: os._exit(1), 3, 1, 0)) as feed:
        with pytest.raises(SettingsError, match="use fewer --feeders"):
            next(feed)


def test_all_tensors_of_a_batch_go_to_the_device() -> None:
    tokens = torch.zeros(2, 3)
    moved = to_device(ClipBatch(tokens, [tokens, tokens], negatives=[tokens]), torch.device("meta"))
    assert {part.device.type for part in (moved.images, *moved.captions, *moved.negatives)} == {"meta"}


@pytest.mark.slow
def test_signals_at_any_moment_change_no_byte(whole: Path, tmp_path: Path) -> None:
    """One process after the other is ended in another part, until one comes to the end."""
    journal = tmp_path / "run.jsonl"
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(Path(__file__).parents[2]))
    script = tmp_path / "train.py"
    script.write_text(_TRAIN)
    ways = [(signal.SIGKILL, "clip-2-collages"), (signal.SIGTERM, "tcl-a"), (None, "")]
    codes = []
    for number, part in ways:
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 240
        while number is not None and process.poll() is None and time.monotonic() < deadline:
            entries = read_journal(journal)
            if any(entry["event"] == "begin" and entry["part"] == part for entry in entries):
                process.send_signal(number)
                break
            time.sleep(0.002)
        message = process.communicate(timeout=240)[1]
        codes.append(process.returncode)
        assert number is not None or process.returncode == 0, message
    assert codes[0] == -signal.SIGKILL
    ended = (tmp_path / "playground.safetensors").read_bytes()
    assert ended == (whole / "playground.safetensors").read_bytes()
    events = _events(tmp_path)
    assert events.count("start") == 1 and events.count("resume") == 2
    assert events.count("interrupted") == 1 and events.count("cut off") == 1
    assert sum(event == "finished" for event in events) == 1
    # Words are found once, and what was trained is not trained again.
    assert events.count("words") == 1
    assert sorted(spent(read_journal(journal))) == sorted(PARTS)


@pytest.mark.slow
def test_the_tcl_stage_with_another_seed(whole: Path) -> None:
    recipe = short(RECIPE)
    sha256 = ground(begin(recipe, whole, "float32", CODE, quiet=True, ground_seed=5, workers=0), 5)
    own, other = (read_model_file(whole / part / "playground.safetensors") for part in ("", "ground-5"))
    assert other.sha256 == sha256 != own.sha256
    assert all(torch.equal(tensor, other.clip[name]) for name, tensor in own.clip.items())
    assert not all(torch.equal(tensor, other.learned[name]) for name, tensor in own.learned.items())
    assert read_journal(whole / "ground-5" / "run.jsonl")[0]["about"]["ground_seed"] == 5
    parts = spent(read_journal(whole / "ground-5" / "run.jsonl"))
    assert not any(name.startswith("clip") for name in parts)


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_code_and_recipe_alone(whole: Path, tmp_path: Path) -> None:
    recipe = short(RECIPE)
    with pytest.raises(SettingsError, match=r"run.jsonl: .*other code or settings \(commit 0{40}, now 1{40}\)"):
        begin(recipe, whole, "float32", Code("1" * 40))
    with pytest.raises(SettingsError, match=r"modified.0 not set, now training/step.py"):
        begin(recipe, whole, "float32", Code(CODE.commit, ("training/step.py",)))
    with pytest.raises(SettingsError, match=r"about.recipe.seed 0, now 3"):
        begin(dataclasses.replace(recipe, seed=3), whole, "float32", CODE)
    with pytest.raises(SettingsError, match=r"about.precision float32, now bfloat16"):
        begin(recipe, whole, "bfloat16", CODE)
    with pytest.raises(SettingsError, match="the CLIP is not trained to its end; finish the run"):
        ground(begin(recipe, tmp_path, "float32", CODE, ground_seed=1), 1)


@pytest.mark.slow
# In one scene none of a draw's labels may occur.
@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning", "ignore:All-NaN slice:RuntimeWarning")
def test_a_finished_run_is_published(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a copy of the documents, from few scenes; a second time without scoring again."""
    run_folder, repository = tmp_path / "run", tmp_path / "repository"
    shutil.copytree(whole, run_folder)
    for place in ("docs", "training/playground/results"):
        shutil.copytree(REPOSITORY / place, repository / place)
    (repository / "tcl_core" / "assets").mkdir(parents=True)
    arguments = ["--run", str(run_folder), "--repository", str(repository), "--scenes", "1", "--project-scenes", "1"]
    arguments += ["--draws", "1", "--threads", "1"]
    # What three steps learned misses the targets.
    assert tables.main([*arguments, "--embed"]) == 1
    results = repository / "training" / "playground" / "results"
    table = json.loads((results / "table.json").read_text())
    file = read_model_file(repository / "tcl_core" / "assets" / "playground.safetensors")
    assert table["weights_sha256"] == file.sha256 and table["seeds"] == {"seen": 19_201, "held-out": 19_202}
    assert table["run"]["commit"] == CODE.commit and set(table["run"]["times"]) == set(PARTS)
    seeds = [0, 5] if (whole / "ground-5").exists() else [0]
    assert [one["seed"] for one in table["spread"]] == seeds
    assert [target["met"] for target in table["targets"]] == [False, False, True, True]
    model = load_model(file.path, device="cpu", precision="float32", backend="torch")
    rows = evaluate_playground(model, 1, split="test")
    assert [row.seen for row in rows] == pytest.approx([row["seen"] for row in table["rows"]])
    records = ["ground-5.jsonl", "run.jsonl"][-len(seeds) :]
    assert sorted(path.name for path in results.glob("*.jsonl")) == records
    assert not (results / "former-table.json").exists()
    names = ("table", "projects", "training-free")
    recorded = {name: json.loads((results / f"{name}.json").read_text()) for name in names}
    for place, parts in parts_of(recorded).items():
        page = (repository / place).read_text(encoding="utf-8")
        assert with_parts(page, parts, str(place)) == page
        assert "former recipe" not in page and "113 minutes" not in page
    assert f"`{'0' * 12}`" in (repository / "docs" / "history.md").read_text(encoding="utf-8")

    def scored(*_: object) -> None:
        raise AssertionError("scored again")

    with monkeypatch.context() as patch:
        patch.setattr(tables, "evaluate_playground", scored)
        patch.setattr(tables, "evaluate_projects", scored)
        assert tables.main(arguments) == 1
        with pytest.raises(SettingsError, match="holds scores of other weights or another number of scenes"):
            tables.score(run_folder, 2, 1, 1)
    journal = run_folder / "run.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(SettingsError, match="is not finished"):
        tables.score(run_folder, 1, 1, 1)
    first = json.loads(lines[0]) | {"modified": ["training/step.py"]}
    journal.write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    with pytest.raises(SettingsError, match="no commit has"):
        tables.score(run_folder, 1, 1, 1)


def test_drawing_can_be_interrupted(tmp_path: Path) -> None:
    interruption = Interruption()
    session = begin(short(RECIPE), tmp_path, "float32", CODE, interruption, quiet=True, workers=0)
    interruption.asked = True
    with pytest.raises(StoppedError, match="run the same command again"):
        run(session)
    entries = read_journal(tmp_path / "run.jsonl")
    assert [entry["event"] for entry in entries] == ["start", "begin", "interrupted"]
    assert json.loads((tmp_path / "run.jsonl").read_text().splitlines()[-1])["part"] == "words of the captions"
