"""``tcl-annotate playground``: scenes of the playground world, and how well a model finds its way in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from tcl_core.cli.main import EXIT_FINE
from tcl_core.cli.options import DEFAULT_MODEL, device_option, make_segmenter, model_options, precision_option
from tcl_core.cli.places import OUTPUT_PATH, check_file
from tcl_core.errors import SettingsError

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["command"]

_SEED = click.IntRange(min=0, max=2**32 - 1)


@click.group(
    "playground",
    short_help="Draw sample scenes and score a model on them.",
    epilog="""\b
Examples:
  tcl-annotate playground scenes --out scenes --count 12
  tcl-annotate playground evaluate --scenes 500""",
)
def command() -> None:
    """Draw scenes of the toy world that the embedded model knows, and score models on unseen scenes."""


@command.command(
    "scenes",
    epilog="""\b
Examples:
  tcl-annotate playground scenes --out scenes
  tcl-annotate playground scenes --out scenes --count 40 --size 320 240 --seed 7 --ground-truth""",
)
@click.option("--out", type=OUTPUT_PATH, required=True, metavar="DIR", help="Folder for the images.")
@click.option(
    "--count", type=click.IntRange(min=1), default=12, show_default=True, metavar="N", help="Number of scenes."
)
@click.option(
    "--seed",
    type=_SEED,
    default=0,
    show_default=True,
    metavar="N",
    help="Random seed; the same seed gives the same scenes.",
)
@click.option(
    "--size",
    type=(click.IntRange(min=32, max=4096), click.IntRange(min=32, max=4096)),
    default=(320, 240),
    show_default=True,
    metavar="WIDTH HEIGHT",
    help="Size of the images in pixels.",
)
@click.option("--ground-truth", is_flag=True, help="Also write the exact masks as a COCO file, ground_truth.json.")
@click.option("--overwrite", is_flag=True, help="Replace existing scenes, labels.yaml and ground_truth.json in DIR.")
def scenes_command(out: Path, count: int, seed: int, size: tuple[int, int], ground_truth: bool, overwrite: bool) -> int:
    """Write scenes as PNG files, and a labels.yaml with everything that they can show."""
    there = [path for name in ("labels.yaml", "ground_truth.json", "scene-*.png") for path in sorted(out.glob(name))]
    if there and not overwrite:
        raise SettingsError(f"--out {out}: already contains {there[0].name}; add --overwrite, or choose another folder")

    from tcl_core.playground.export import write_scenes

    try:
        written = write_scenes(out, count, seed, size[::-1], ground_truth=ground_truth)
    except OSError as error:
        raise SettingsError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    click.echo(
        f"{len(written)} scenes and {out / 'labels.yaml'}" + (f", {out / 'ground_truth.json'}" if ground_truth else "")
    )
    return EXIT_FINE


@command.command(
    "evaluate",
    epilog="""\b
Examples:
  tcl-annotate playground evaluate
  tcl-annotate playground evaluate --split validation --scenes 100
  tcl-annotate playground evaluate --model build/playground/playground.safetensors --scenes 100 --json table.json""",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    default=[DEFAULT_MODEL],
    show_default=True,
    metavar="NAME",
    help="Name or path of a model; repeatable, for one table each.",
)
@click.option(
    "--scenes",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    metavar="N",
    help="Number of scenes per set.",
)
@click.option(
    "--split",
    type=click.Choice(["validation", "test"]),
    default="test",
    show_default=True,
    help="Scenes: those of the published table (test), or others to make choices with (validation).",
)
@device_option
@precision_option
@click.option("--json", "json_file", type=OUTPUT_PATH, metavar="FILE", help="Also write the table to FILE.")
def evaluate_command(
    models: tuple[str, ...],
    scenes: int,
    split: Literal["validation", "test"],
    device: str,
    precision: str,
    json_file: Path | None,
) -> int:
    """Print the mean IoU of models and their parts on scenes that were not used in training.

    One set of scenes has kind-color combinations that occur in training, the other only held-out combinations. All
    classes compete in every scene.
    """
    if json_file is not None:
        check_file("--json", json_file)

    from tqdm import tqdm

    from tcl_core.evaluation.playground import SEEDS, evaluate_playground, format_rows, rows_to_json
    from tcl_core.models import load_model

    tables: list[dict[str, Any]] = []
    for name in models:
        loaded = load_model(name, device=device, precision=precision)
        with tqdm(total=2 * scenes, unit="scene", desc=f"scoring {loaded.name}", mininterval=1) as bar:
            rows = evaluate_playground(loaded, scenes, partial(_advance, bar), split)
        click.echo(
            f"mean IoU in percent, {scenes} {split} scenes per set, model {loaded.name} "
            f"({loaded.weights_sha256[:12]})\n"
        )
        click.echo(format_rows(rows) + "\n")
        about = {"model": loaded.name, "weights_sha256": loaded.weights_sha256, "scenes": scenes, "split": split}
        about["seeds"] = {which: SEEDS[split][which] for which in ("seen", "held-out")}
        tables.append(about | {"rows": json.loads(rows_to_json(rows))})
        if json_file is not None:
            # After each model, for the next may take minutes and be interrupted.
            content = tables[0] if len(models) == 1 else tables
            try:
                json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            except OSError as error:
                raise SettingsError(f"--json {json_file}: cannot be written ({error.strerror or error})") from error
    return EXIT_FINE


@command.command(
    "projects",
    epilog="""\b
Examples:
  tcl-annotate playground projects
  tcl-annotate playground projects --seed 19104 --scenes 150 --option kp_weight=0.3 --background-threshold 0.4""",
)
@model_options
@click.option(
    "--scenes", type=click.IntRange(min=1), default=300, show_default=True, metavar="N", help="Number of scenes."
)
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="Number of vocabularies per kind of project.",
)
@click.option(
    "--seed", type=_SEED, default=19_204, show_default=True, metavar="N", help="Random seed of scenes and vocabularies."
)
@click.option(
    "--background-threshold",
    type=click.FloatRange(0, 1),
    metavar="T",
    help="Background threshold. Default: the model's.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Also write the table to FILE."
)
def projects_command(
    model: str,
    refine: bool,
    option_values: Mapping[str, str],
    device: str,
    precision: str,
    backend: str,
    batch_size: int,
    scenes: int,
    draws: int,
    seed: int,
    background_threshold: float | None,
    json_file: Path | None,
) -> int:
    """Print the mean IoU on projects with a few labels.

    Everything else in a scene is background, which counts as a class. Each row is the mean over several vocabularies.
    """
    from tqdm import tqdm

    from tcl_core.evaluation.projects import (
        evaluate_projects,
        format_projects,
        mistaken_for_synonyms,
        projects_to_json,
        synonyms_and_others,
    )
    from tcl_core.segmentation.background_names import NEAR

    segmenter = make_segmenter(model, refine, option_values, device, precision, batch_size, backend)
    name = segmenter.model.name
    with tqdm(total=scenes, unit="scene", desc=f"scoring {name}", mininterval=1) as bar:
        rows = evaluate_projects(segmenter, scenes, draws, seed, background_threshold, progress=partial(_advance, bar))
    height = segmenter.background_threshold if background_threshold is None else background_threshold
    digest = segmenter.model.weights_sha256
    click.echo(
        f"mean IoU in percent, {scenes} scenes, {draws} draws per row, seed {seed}, model {name} ({digest[:12]}), "
        f"background {height}\n"
    )
    click.echo(format_projects(rows))
    synonyms, others = synonyms_and_others(segmenter)
    click.echo(
        f"\nsimilarity of synonyms at least {synonyms:.2f}, of different things at most {others:.2f}; "
        f"background names are left out at {NEAR} or above"
    )
    for one, other, nearness in mistaken_for_synonyms(segmenter):
        click.echo(f"{one} and {other} ({nearness:.2f}) do not compete with each other")
    if json_file is not None:
        content = {"settings": segmenter.settings(), "scenes": scenes, "seed": seed, "background_threshold": height}
        content["rows"] = json.loads(projects_to_json(rows))
        try:
            json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"--json {json_file}: cannot be written ({error.strerror or error})") from error
    return EXIT_FINE


def _advance(bar: tqdm, done: int, _: int) -> None:
    bar.update(done - bar.n)
