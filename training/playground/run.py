"""Trains the embedded model from the first image to the model file, on the training engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tcl_core.errors import SettingsError
from tcl_core.methods.tcl import TCL
from tcl_core.models.metadata import ModelMetadata
from tcl_core.models.modelfile import write_model_file
from tcl_core.playground import caption_words
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import WordTokenizer
from tcl_core.vocabulary.templates import get_templates
from training.checkpoints import load_checkpoint
from training.config import TrainPhase
from training.cpu import Precision, fast_attention
from training.journal import Code, Journal
from training.phase import Identity, Interruption, Options, PhaseRun, StoppedError
from training.playground.clip import ClipTraining, build_clip, clip_batches, whiten_towers
from training.playground.data import WORKERS, Captions, Images, ImageSet, draw_images, draw_words
from training.playground.debias import color_axes
from training.playground.feed import StepFeed
from training.playground.recipe import Recipe, clip_config
from training.playground.tcl import mean_of_states, tcl_batches
from training.playground.words import Reader, Words
from training.step import Stepper

__all__ = ["CAPTION_TEMPLATES", "Session", "begin", "ground", "ground_folder", "run"]

CAPTION_TEMPLATES = "full"
_EVALUATION_TEMPLATES = "custom"
_CPU = torch.device("cpu")


@dataclass
class Session:
    """What the parts of a run share.

    Attributes:
        recipe: what to do.
        folder: checkpoints and logs; an interrupted run resumes from there.
        precision: of towers and decoder.
        journal: the record.
        interruption: asked after each step.
        quiet: no progress bars.
        workers: processes that draw images; 0 draws them in this one.
        device: that trains.
        feeders: processes that make batches, which a GPU would wait for; 0 makes them in this one.
    """

    recipe: Recipe
    folder: Path
    precision: Precision
    journal: Journal
    interruption: Interruption
    quiet: bool = False
    workers: int = WORKERS
    device: torch.device = _CPU
    feeders: int = 0
    _reader: Reader | None = None
    _drawn: dict[ImageSet, Images] = field(default_factory=dict)

    @property
    def tokenizer(self) -> WordTokenizer:
        """Of captions and prompts."""
        return WordTokenizer(caption_words(get_templates(CAPTION_TEMPLATES)), self.recipe.context_length)

    @property
    def reader(self) -> Reader:
        """Of captions, whose words are found in them once in a run."""
        if self._reader is None:
            self._reader = Reader(self._recorded_words() or self._find_words())
        return self._reader

    def _recorded_words(self) -> Words | None:
        for entry in self.journal.entries():
            if entry["event"] == "words":
                things = {name: tuple(others) for name, others in entry["things"].items()}
                return Words(things, *(tuple(entry[key]) for key in ("stuff", "colors", "modifiers")))
        return None

    def _find_words(self) -> Words:
        with self.journal.part("words of the captions"):
            words = draw_words(self.recipe.image_sets(), self.recipe.read_images, self.workers, self._check)
            self.journal.note("words", asdict(words))
        return words

    def images(self, wanted: ImageSet) -> Images:
        """Draw a set, if it is not one of the last two: steps and stages share them."""
        if wanted not in self._drawn:
            reader = self.reader
            while len(self._drawn) > 1:
                self._drawn.pop(next(iter(self._drawn)))
            with self.journal.part(f"images {self.recipe.image_sets().index(wanted) + 1}"):
                self._drawn[wanted] = draw_images(wanted, reader, self.workers, self._check)
        return self._drawn[wanted]

    def _check(self) -> None:
        if self.interruption.asked:
            raise StoppedError("Stopped while images were drawn; run the same command again to resume.")

    def train(
        self, phase: TrainPhase, method: Any, make: Callable[[int], Any], seed: int, decisive: str, folder: Path
    ) -> None:
        """Run a phase of the engine, from the beginning or from its checkpoint."""
        method.to(self.device)
        stepper = Stepper(method, phase, self.device, seed=seed)
        shown = phase.model_dump(mode="json", exclude={"log_every", "save_every", "evaluation"})
        identity = Identity(json.dumps({"recipe": json.loads(decisive), "seed": seed, "phase": shown}), "playground")
        options = Options(folder, self.device, quiet=self.quiet, observer=self.journal.step)
        feed = partial(StepFeed, make, phase.steps, self.feeders)
        with self.journal.part(phase.name), fast_attention(self.precision, self.device):
            PhaseRun(phase, method, stepper, feed, identity, options, self.interruption).run()


def begin(
    recipe: Recipe,
    folder: Path,
    precision: Precision,
    code: Code,
    interruption: Interruption | None = None,
    quiet: bool = False,
    ground_seed: int | None = None,
    workers: int = WORKERS,
    device: torch.device = _CPU,
    feeders: int = 0,
) -> Session:
    """Open the record of a run, see `Journal`."""
    about = {"recipe": asdict(recipe), "precision": precision, "ground_seed": ground_seed, "device": device.type}
    place = folder if ground_seed is None else ground_folder(folder, ground_seed)
    journal = Journal(place / "run.jsonl", code, json.loads(json.dumps(about)))
    return Session(recipe, folder, precision, journal, interruption or Interruption(), quiet, workers, device, feeders)


def ground_folder(folder: Path, seed: int) -> Path:
    """Where `ground` trains the TCL stage of a run with another seed."""
    return folder / f"ground-{seed}"


def run(session: Session) -> str:
    """Train everything, and write ``playground.safetensors`` into the run's folder.

    Returns:
        SHA-256 of the model file.

    Raises:
        StoppedError: the run was asked to stop, and is saved.
        SettingsError: a checkpoint is of another recipe.
    """
    recipe, folder = session.recipe, session.folder
    clip = build_clip(clip_config(session.tokenizer.vocab_size, recipe.context_length), recipe.seed)
    training = ClipTraining(clip)
    if not (folder / f"{recipe.clip_phases[0].name}.ckpt").exists():
        # Towers that are about to be replaced by a checkpoint need no whitening.
        first = recipe.clip_phases[0]
        how = Captions(get_templates(CAPTION_TEMPLATES), 2, first.brief)
        batch = session.images(first.views[0].images).batch(
            np.random.default_rng(recipe.seed), recipe.whitened, session.tokenizer, how
        )
        with session.journal.part("whitening"):
            whiten_towers(clip, batch.images, torch.cat(batch.captions), recipe.seed)
    for number, phase in enumerate(recipe.clip_phases):
        if session.feeders:
            for view in phase.views:
                # Else each of the processes would draw them.
                session.images(view.images)
        make = clip_batches(
            phase,
            session.images,
            session.tokenizer,
            get_templates(CAPTION_TEMPLATES),
            recipe.seed + number,
            clip.visual.patch_size[0],
        )
        train_phase = phase.train_phase(session.precision)
        session.train(train_phase, training, make, recipe.seed + number, _up_to(recipe, number), folder)
    return _ground(session, clip, recipe.seed, folder)


def ground(session: Session, seed: int) -> str:
    """Train the TCL stage anew on the CLIP of a finished run, into a folder of its own in the run's.

    Args:
        session: of `begin` with the same seed.
        seed: of the stage's new weights, batches, captions and noise.

    Raises:
        SettingsError: the folder has no finished CLIP of this recipe.
    """
    recipe, folder = session.recipe, session.folder
    number = len(recipe.clip_phases) - 1
    last = recipe.clip_phases[number]
    path = folder / f"{last.name}.ckpt"
    state = load_checkpoint(path)
    if state is None or state["step"] < last.schedule.steps:
        raise SettingsError(f"{path}: the CLIP is not trained to its end; finish the run in {folder} first")
    if json.loads(state["recipe"])["recipe"] != json.loads(_up_to(recipe, number)):
        raise SettingsError(f"{path}: is of another recipe; name the folder of a run of this one")
    clip = build_clip(clip_config(session.tokenizer.vocab_size, recipe.context_length), recipe.seed)
    clip.load_state_dict(state["learned"])
    return _ground(session, clip, seed, ground_folder(folder, seed))


def _up_to(recipe: Recipe, number: int) -> str:
    """What decides the weights after a phase of the CLIP; a later one may change without it."""
    settings = asdict(recipe)
    kept = {key: settings[key] for key in ("seed", "context_length", "read_images", "whitened")}
    return json.dumps(kept | {"clip_phases": settings["clip_phases"][: number + 1]}, sort_keys=True)


def _ground(session: Session, clip: Any, seed: int, folder: Path) -> str:
    recipe, stage = session.recipe, session.recipe.tcl_stage
    torch.manual_seed(seed)
    tcl = TCL(FrozenClip(clip), recipe.tcl)
    # Convolutions on a CPU are several times faster with the channels last.
    tcl.masker.to(memory_format=torch.channels_last)
    # The tower is so small that memory does not matter, and time does.
    tcl.clip.recompute = False
    settings = asdict(recipe)
    decisive = json.dumps({key: settings[key] for key in ("seed", "clip_phases", "tcl", "tcl_stage")}, sort_keys=True)
    start = _copy(tcl.learned_state_dict())
    ends = []
    templates = get_templates(CAPTION_TEMPLATES)
    if session.feeders:
        session.images(stage.images)
    for name, brief in stage.copies().items():
        tcl.load_learned_state_dict(start)
        make = tcl_batches(stage, brief, session.images, session.tokenizer, templates, seed)
        session.train(stage.train_phase(name, session.precision), tcl, make, seed, decisive, folder)
        ends.append(_copy(tcl.learned_state_dict()))
    tcl.load_learned_state_dict(mean_of_states(ends, stage.shares))
    examples = session.images(stage.images).first(recipe.debias_images)
    with session.journal.part("color directions"):
        axes = color_axes(tcl, session.tokenizer, examples, recipe.debias_axes)
    with session.journal.part("model file"):
        out = folder / "playground.safetensors"
        sha256 = write_model_file(
            out,
            _metadata(session, session.reader.words),
            tcl.learned_state_dict(),
            clip.state_dict(),
            debiasing_axes=axes,
            half=True,
        )
    session.journal.note("finished", {"sha256": sha256, "bytes": out.stat().st_size})
    return sha256


def _metadata(session: Session, words: Words) -> ModelMetadata:
    recipe = session.recipe
    return ModelMetadata(
        name="playground",
        preprocess=recipe.preprocess,
        method_config=recipe.tcl.to_dict(),
        clip={"config": clip_config(session.tokenizer.vocab_size, recipe.context_length)},
        tokenizer=session.tokenizer.to_dict(),
        templates=_EVALUATION_TEMPLATES,
        background_threshold=recipe.tcl.heights(),
        background_names=list(words.names),
        debiasing={"words": list(words.colors), "text_set": "text"},
        license="MIT",
        source="python -m training.playground",
        extra={"recipe": json.loads(json.dumps(asdict(recipe))), "precision": session.precision},
    )


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
