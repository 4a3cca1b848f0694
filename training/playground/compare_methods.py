"""TCL, CoDe and MGCA-style on the playground's frozen CLIP: ``python -m training.playground.compare_methods``.

All methods see the same images in the same order, for the same number of steps under the same schedule. CoDe's
captions name at least two things. TCL is trained twice, on captions like those of its own recipe, most of which are
brief, and on CoDe's; CoDe with settings for the playground, and with its paper's. MGCA-style is trained on TCL's
captions, with more and more of its terms; runs whose name ends with ``-unit`` score the model of another run with the
adaptive semantic unit.

CoDe's learned prompt needs more positions than the small text tower has. Positions behind the last one take the
embeddings of the first ones again, from the second on, so that a noun behind 16 learned vectors stands where the noun
of "a cup" stands. Texts that fit before give the same embeddings as before. Captions are kept short enough to fit.

Everything is kept in ``--work``: drawn images, checkpoints, model files and scores; a run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tcl_core.devices import select_device
from tcl_core.errors import TclError
from tcl_core.evaluation.playground import Split, evaluate_playground, own_variants, rows_to_json
from tcl_core.methods.semantic_unit import PIXELS, UNIT
from tcl_core.models import load_model
from training.config import Recipe
from training.cpu import Precision, fast_attention, native_precision
from training.engine import Interruption, Options, StoppedError, run_recipe
from training.model import trainable_class
from training.playground.arguments import at_least, json_settings
from training.playground.method_data import NO_THINGS, SceneSource, draw, extended_clip
from training.playground.method_tables import scores_folder, table
from training.playground.recipe import RECIPE

__all__ = ["RUNS", "Run", "main", "recipe_of"]

_POSITIONS = 24
# As TCL's settings for the playground, they were chosen on it; see docs/code.md.
_CODE = {
    "negatives": "not named",
    "negative_area_weight": 0.4,
    "decoder_double": True,
    "codecomposition_weight": 0.1,
}
# The copied blocks stay frozen, and masks have 16 x 16 pixels.
_MGCA_STYLE = {"hard_pixels": 8}
_FIRST_TERMS = 0.6


@dataclass(frozen=True)
class Run:
    """What is trained and scored.

    Attributes:
        method: its name.
        captions: their kind, see `captions_of`.
        config: settings of the method.
        options: of the method, where it is scored; by default without the adaptive semantic unit.
        model: name of the run whose model is scored, where it is not one of its own.
    """

    method: str
    captions: str
    config: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=lambda: PIXELS)
    model: str | None = None


RUNS = {
    "tcl": Run("tcl", "brief"),
    "tcl-two": Run("tcl", "two"),
    "tcl-unit": Run("tcl", "brief", options=UNIT, model="tcl"),
    "code-paper": Run("code", "two"),
    "code": Run("code", "two", _CODE),
    "code-brief": Run("code", "brief", {**_CODE, "nouns": 1}),
    "mgca-style-object": Run("mgca-style", "brief", {"region_weight": 0.0, "pixel_weight": 0.0}),
    "mgca-style-region": Run("mgca-style", "brief", {"pixel_weight": 0.0}),
    "mgca-style-pixel": Run("mgca-style", "brief"),
    "mgca-style-unit": Run("mgca-style", "brief", options=UNIT, model="mgca-style-pixel"),
}
"""All runs by name; those of MGCA-style have each the terms of the ones before."""
_DEFAULT_RUNS = ("tcl", "tcl-two", "code")


def recipe_of(
    run: str,
    clip: Path,
    steps: int,
    seed: int,
    changes: dict[str, Any] | None = None,
    batch: int | None = None,
    precision: Precision = "bfloat16",
) -> Recipe:
    """The recipe of a run; the schedule is that of the embedded model's grounder, at any length.

    Args:
        run: a key of `RUNS`.
        clip: model file with the frozen CLIP.
        steps: of both stages.
        seed: of new weights, order and noise.
        changes: of the method's settings.
        batch: images of a step; ``None`` for as many as the embedded model was trained with.
        precision: of towers and decoder.
    """
    method, own, stage = RUNS[run].method, RECIPE.tcl, RECIPE.tcl_stage
    config: dict[str, Any] = {
        "ie_freeze": own.ie_freeze,
        "decoder_layers": own.decoder_layers,
        "area_prior": own.area_prior,
        "tv_weight": own.tv_weight,
        "refine_scale": own.refine_scale,
        "kp_weight": own.kp_weight,
    }
    if method == "code":
        config |= {"tagger": "rules", "ignored_nouns": NO_THINGS, **RUNS[run].config}
    names, share = ("ust", "full"), stage.ust_steps / stage.schedule.steps
    if method == "mgca-style":
        config |= {**_MGCA_STYLE, **RUNS[run].config}
        names, share = ("object", "all"), _FIRST_TERMS
    first = max(1, round(steps * share))
    schedule = stage.schedule
    phase = {
        "kind": "train",
        "name": run,
        "stages": [{"stage": names[0], "steps": first}, {"stage": names[1], "steps": steps - first}],
        "batch": batch or stage.batch,
        "optimizer": {"decay_scalars": False, "scalar_scale": schedule.scalar_scale},
        "schedule": {"lr": schedule.lr, "min_lr": schedule.min_lr, "warmup": min(schedule.warmup, steps // 4)},
        "clip_norm": schedule.clip_norm,
        "precision": precision,
        "augmentation": {
            "size": stage.images.size,
            "scale": [1.0, 1.0],
            "ratio": [1.0, 1.0],
            "flip": 0.0,
            "mean": RECIPE.preprocess.mean,
            "std": RECIPE.preprocess.std,
        },
        "log_every": 25,
        "save_every": 100,
    }
    model = {"method": method, "clip": str(clip), "new_weights": True, "config": config | (changes or {})}
    return Recipe.model_validate({"name": f"{run}-{steps}-{seed}", "seed": seed, "model": model, "phases": [phase]})


def score(
    model: Path,
    out: Path,
    scenes: int,
    split: Split = "validation",
    options: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> None:
    """Score a model file on the playground, once."""
    if out.is_file():
        return
    # Scores that are published do not depend on what else is installed.
    loaded = load_model(model, device=device, precision="float32", backend="torch")
    loaded = dataclasses.replace(loaded, method=loaded.method.configured(options or {}))
    with tqdm(total=2 * scenes, desc=f"scoring {out.stem}", mininterval=5) as bar:
        rows = evaluate_playground(
            loaded, scenes, lambda done, _: bar.update(done - bar.n), split, own_variants(loaded)
        )
    content = {"model": model.stem, "scenes": scenes, "split": split, "rows": json.loads(rows_to_json(rows))}
    out.write_text(json.dumps(content, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train and score."""
    parser = argparse.ArgumentParser(prog="python -m training.playground.compare_methods", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/methods"), help="where everything is kept")
    parser.add_argument("--steps", type=at_least(2), default=375, help="steps of each training")
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0], help="one training of each run for each")
    parser.add_argument("--runs", nargs="+", choices=sorted(RUNS), default=list(_DEFAULT_RUNS), help="what is trained")
    parser.add_argument("--batch", type=at_least(2), help="images of a step, by default those of the embedded model")
    parser.add_argument("--images", type=at_least(1), default=40_000, help="images that are drawn, once for all runs")
    parser.add_argument("--scenes", type=at_least(1), default=500, help="scenes of each of the two sets of the score")
    parser.add_argument(
        "--split", choices=("validation", "test"), default="validation", help="scenes: test for a published table alone"
    )
    parser.add_argument("--threads", type=at_least(1), default=2, help="CPU threads")
    parser.add_argument("--workers", type=at_least(0), default=2, help="processes that draw")
    parser.add_argument("--device", default="cpu", help="cpu, or the GPU that trains and scores: auto, cuda or cuda:N")
    parser.add_argument("--feeders", type=at_least(0), default=0, help="processes that prepare batches")
    parser.add_argument("--clip", type=Path, help="model file whose CLIP is trained on; by default the embedded one")
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of towers and decoder; auto: bfloat16 where the device is fast in it, else float32",
    )
    parser.add_argument(
        "--set",
        dest="changes",
        type=json_settings,
        default={},
        metavar="JSON",
        help="other settings of the methods, such as '{\"regions\": 2}'",
    )
    parser.add_argument("--name", default="", help="put behind the name of the run, to tell settings apart")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    work: Path = options.work
    images = dataclasses.replace(RECIPE.tcl_stage.images, count=options.images)
    clip = work / "clip.safetensors"
    scores = scores_folder(work, options.split)
    try:
        # Before minutes are spent on drawing.
        device = select_device(options.device)
        precision: Precision = native_precision(device) if options.precision == "auto" else options.precision
        with Interruption().listening() as interruption:

            def check() -> None:
                if interruption.asked:
                    raise StoppedError("Stopped while images were drawn; run the same command again to draw them.")

            for run in options.runs:
                checked = recipe_of(RUNS[run].model or run, clip, options.steps, 0, options.changes).model
                trainable_class(checked.method).check_settings(checked.config)
            draw(work / "images", images, options.workers, check)
            if not clip.is_file():
                extended_clip(clip, _POSITIONS, options.clip)
            scores.mkdir(exist_ok=True)
            for seed in options.seeds:
                for run in options.runs:
                    trained = RUNS[run].model or run
                    recipe = recipe_of(trained, clip, options.steps, seed, options.changes, options.batch, precision)
                    ending = f"{options.name}-{options.steps}-{seed}"
                    recipe = recipe.model_copy(update={"name": f"{trained}{ending}"})
                    source = SceneSource(work / "images", RUNS[run].captions)
                    # The towers are so small that memory does not matter, and time does.
                    settings = Options(work / recipe.name, device, options.feeders, keep_activations=True)
                    with fast_attention(precision, device):
                        model = run_recipe(recipe, source, settings, interruption)
                    score(
                        model,
                        scores / f"{run}{ending}.json",
                        options.scenes,
                        options.split,
                        RUNS[run].options,
                        str(device),
                    )
    except StoppedError as error:
        print(error, file=sys.stderr)
        return 130
    except TclError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(work, options.split))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
