"""``tcl-annotate evaluate``: models against true label maps, by the protocol of the papers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tcl_core.cli.main import EXIT_FINE
from tcl_core.cli.options import (
    DEFAULT_MODEL,
    backend_option,
    batch_size_option,
    device_option,
    method_option,
    precision_option,
)
from tcl_core.cli.places import INPUT_PATH, OUTPUT_PATH, check_file, check_folder
from tcl_core.errors import SettingsError
from tcl_core.vocabulary import Vocabulary
from tcl_core.vocabulary.templates import TEMPLATE_SETS

if TYPE_CHECKING:
    from tcl_core.evaluation.jobs import DataSpec, ModelSpec
    from tcl_core.evaluation.processes import OnProgress

__all__ = ["command"]

# Repeated here because importing the evaluation package loads PyTorch; a test compares them.
_BENCHMARKS = ("voc", "voc20", "context", "context59", "coco_object", "coco_stuff", "cityscapes", "ade20k")
_DATA_SETS = (*_BENCHMARKS, "playground", "all")
_REFINERS = ("pamr", "none")


@click.command(
    "evaluate",
    short_help="Score models on benchmarks or on your own annotated images.",
    epilog="""\b
Examples:
  tcl-annotate evaluate voc --data data --model tcl-vit-b16
  tcl-annotate evaluate all --data data --model tcl-vit-b16 --processes 4 --out results
  tcl-annotate evaluate --coco annotations.json --images photos --model tcl-vit-b16
  tcl-annotate evaluate --masks masks --labels labels.yaml --images photos
  tcl-annotate evaluate playground --all-methods --refiner none --refiner pamr

To resume a stopped run, run the same command again.""",
)
@click.argument("data_sets", metavar="[DATASET]...", nargs=-1, type=click.Choice(_DATA_SETS))
@click.option("--data", type=INPUT_PATH, metavar="DIR", help="Folder with the unpacked benchmarks.")
@click.option(
    "--split",
    metavar="NAME",
    help="Benchmarks: val (default), or train, which papers use to choose settings. Playground: seen (default) or "
    "held-out.",
)
@click.option("--coco", type=INPUT_PATH, metavar="FILE", help="Your own data: a COCO file.")
@click.option("--masks", type=INPUT_PATH, metavar="DIR", help="Your own data: PNG masks with label values.")
@click.option("--label-studio", type=INPUT_PATH, metavar="FILE", help="Your own data: a JSON export of Label Studio.")
@click.option("--images", type=INPUT_PATH, metavar="DIR", help="Image folder of your own data.")
@click.option(
    "--labels",
    type=INPUT_PATH,
    metavar="FILE",
    help="Label file of your own data. Default: all labels of the COCO file or export.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Evaluate only the first N images.")
@click.option(
    "--names",
    default="raw",
    show_default=True,
    metavar="raw|synonyms|FILE",
    help="Class names of a benchmark: raw names, NACLIP's synonyms, or the rows of a file.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    default=[DEFAULT_MODEL],
    show_default=True,
    metavar="NAME",
    help="Name or path of a model; repeatable.",
)
@click.option("--all-methods", is_flag=True, help="Also evaluate every training-free method on each model.")
@click.option(
    "--refiner",
    "refiners",
    multiple=True,
    type=click.Choice(_REFINERS),
    default=["pamr"],
    show_default=True,
    help="Refinement along image edges; repeatable.",
)
@method_option("Option of the model's method, such as kp_weight=0.3; repeatable.")
@click.option(
    "--short-side", type=click.IntRange(min=1), metavar="N", help="Short side of resized images. Default: the model's."
)
@click.option(
    "--max-long-side", type=click.IntRange(min=1), metavar="N", help="Limit of the long side. Default: the model's."
)
@click.option("--window", type=click.IntRange(min=1), metavar="N", help="Window size. Default: the model's.")
@click.option("--stride", type=click.IntRange(min=1), metavar="N", help="Window stride. Default: the model's.")
@click.option(
    "--background-threshold",
    type=click.FloatRange(0, 1),
    metavar="T",
    help="Background threshold. Default: the model's.",
)
@click.option("--templates", type=click.Choice(list(TEMPLATE_SETS)), help="Template set. Default: the model's.")
@device_option
@precision_option
@backend_option
@batch_size_option("Windows per forward pass.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of processes to distribute the images over.",
)
@click.option(
    "--out",
    type=OUTPUT_PATH,
    default=Path("evaluation"),
    show_default=True,
    metavar="DIR",
    help="Folder for results, with a subfolder per data set, model and refiner.",
)
@click.option("--overwrite", is_flag=True, help="Start over instead of resuming an earlier run.")
@click.option("--effort/--no-effort", default=True, help="Measure the correction effort; on by default.")
@click.option("--page/--no-page", default=True, help="Write a page with the worst and best images; on by default.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def command(
    data_sets: tuple[str, ...],
    data: Path | None,
    split: str | None,
    coco: Path | None,
    masks: Path | None,
    label_studio: Path | None,
    images: Path | None,
    labels: Path | None,
    limit: int | None,
    names: str,
    models: tuple[str, ...],
    all_methods: bool,
    refiners: tuple[str, ...],
    option_values: Mapping[str, str],
    short_side: int | None,
    max_long_side: int | None,
    window: int | None,
    stride: int | None,
    background_threshold: float | None,
    templates: str | None,
    device: str,
    precision: str,
    backend: str,
    batch_size: int,
    processes: int,
    out: Path,
    overwrite: bool,
    effort: bool,
    page: bool,
    quiet: bool,
) -> int:
    """Score models on DATASET: benchmarks on your disk (all: the eight of them), the playground, or your own data.

    Prints IoU, accuracy, boundary quality and the effort to correct the predictions. Writes them with all settings as
    JSON and CSV, for the whole set, every class and every image.
    """
    if out.exists():
        check_folder("--out", out)
    else:
        check_file("--out", out, make_folders=True)
    vocabulary = None if labels is None else Vocabulary.from_file(labels)
    specs = _data_specs(data_sets, data, split, coco, masks, label_studio, images, vocabulary, names)

    from tcl_core.evaluation.jobs import EvaluationJob, ModelSpec
    from tcl_core.evaluation.preflight import check_jobs
    from tcl_core.evaluation.processes import run_job, torchrun_share
    from tcl_core.evaluation.report import format_result, summary_table, write_summary

    preprocess = {
        key: value
        for key, value in {
            "short_side": short_side,
            "max_long_side": max_long_side,
            "window": window,
            "stride": stride,
        }.items()
        if value is not None
    }
    first = ModelSpec(
        models[0],
        options=option_values,
        device=device,
        precision=precision,
        backend=backend,
        batch_size=batch_size,
        preprocess=preprocess,
        background_threshold=background_threshold,
        templates=templates,
    )
    specified = list(_models(first, models, all_methods, refiners))
    jobs = [
        EvaluationJob(spec, model, out / label / folder, limit, effort, page)
        for label, spec in specs.items()
        for model, folder in zip(specified, _folders(specified), strict=True)
    ]
    results: list[dict[str, Any]] = []
    share = torchrun_share()
    shown = not quiet and (share is None or share.process == 0)
    # A single job checks everything by itself before it starts.
    if len(jobs) > 1:
        with _progress(", ".join(specs), shown) as on_progress:
            check_jobs(jobs, overwrite, on_progress)
    for job in jobs:
        with _progress(f"{job.folder.parent.name}/{job.folder.name}", shown) as on_progress:
            result = run_job(job, processes, overwrite, on_progress, checked=len(jobs) > 1)
        if result is None:
            continue
        click.echo(("\n" if results else "") + format_result(result))
        click.echo(f"{job.folder / 'result.json'}" + (f", {job.folder / 'page' / 'index.html'}" if page else ""))
        results.append(result)
    if len(results) > 1:
        click.echo("\n" + summary_table(results))
        write_summary(out, results)
    return EXIT_FINE


def _data_specs(
    data_sets: tuple[str, ...],
    data: Path | None,
    split: str | None,
    coco: Path | None,
    masks: Path | None,
    label_studio: Path | None,
    images: Path | None,
    vocabulary: Vocabulary | None,
    names: str,
) -> dict[str, DataSpec]:
    """The data sets, by the name of their folder of results."""
    own = (("--coco", coco), ("--masks", masks), ("--label-studio", label_studio))
    given = [name for name, value in own if value is not None]
    if len(given) + bool(data_sets) != 1:
        raise SettingsError(
            "no data: name data sets, such as voc, or pass --coco FILE, --masks DIR or --label-studio FILE"
            if not given
            else f"{' and '.join([*given, *data_sets])} cannot be combined; use one of them"
        )
    if given and images is None:
        raise SettingsError(f"{given[0]}: requires --images DIR")
    if given and split is not None:
        raise SettingsError("--split: your own data has no splits; remove it")
    if names != "raw" and not set(data_sets) & {*_BENCHMARKS, "all"}:
        raise SettingsError("--names: only applies to benchmarks; for your own data, use --labels")
    if data_sets and images is not None:
        raise SettingsError("--images: only applies to your own data; remove it")
    if data_sets and vocabulary is not None:
        raise SettingsError("--labels: only applies to your own data; for other class names, use --names FILE")

    from tcl_core.evaluation.jobs import BenchmarkData, CocoData, MaskData, PlaygroundData, PluginData

    if coco is not None and images is not None:
        return {coco.stem: CocoData(coco, images, vocabulary)}
    if label_studio is not None and images is not None:
        return {label_studio.stem: PluginData("label-studio", label_studio, images, vocabulary)}
    if masks is not None and images is not None:
        if vocabulary is None:
            raise SettingsError("--masks: masks contain only numbers; use --labels FILE to define their labels")
        return {masks.resolve().name: MaskData(masks, images, vocabulary)}
    specs: dict[str, DataSpec] = {}
    for name in dict.fromkeys(each for one in data_sets for each in (_BENCHMARKS if one == "all" else (one,))):
        if name == "playground":
            chosen = split or "seen"
            specs[f"{name}-{chosen}"] = PlaygroundData(chosen)
            continue
        if data is None:
            raise SettingsError(f"{name}: requires --data DIR, the folder with the benchmarks")
        specs[f"{name}-{split or 'val'}"] = BenchmarkData(name, data, split or "val", names)
    return specs


def _models(
    first: ModelSpec, models: tuple[str, ...], all_methods: bool, refiners: tuple[str, ...]
) -> Iterator[ModelSpec]:
    from tcl_core.methods import method_class
    from tcl_core.models.registry import check_options, split_method

    for name in dict.fromkeys(models):
        if first.options:
            check_options(name, first.options)
        options = {name: dict(first.options)}
        if all_methods:
            if split_method(name)[0] is not None:
                raise SettingsError(f"--all-methods: {name} includes a method; give only the model")
            for method in _methods_without_weights():
                known = method_class(method).options_class.model_fields
                options[f"{method}:{name}"] = {key: value for key, value in first.options.items() if key in known}
        for each, chosen in options.items():
            for refiner in dict.fromkeys(refiners):
                yield replace(first, name=each, refine=refiner != "none", options=chosen)


def _methods_without_weights() -> list[str]:
    """Methods that run on the CLIP of any model."""
    from tcl_core.methods import list_methods, method_class, runs_on_a_clip

    kinds = [method_class(name) for name in list_methods()]
    return [kind.name for kind in kinds if runs_on_a_clip(kind) and not kind.example().learned_state_dict()]


def _folders(models: Sequence[ModelSpec]) -> list[str]:
    """Names of the folders of results, valid on every file system; a hash tells apart files of the same name."""
    short = [_short_name(model.name) for model in models]
    owners: dict[str, set[str]] = {}
    for name, model in zip(short, models, strict=True):
        owners.setdefault(name, set()).add(model.name)
    return [
        (f"{name}-{sha256(model.name.encode()).hexdigest()[:8]}" if len(owners[name]) > 1 else name)
        + ("-pamr" if model.refine else "-none")
        for name, model in zip(short, models, strict=True)
    ]


def _short_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name if "/" in name else name).strip("-.")


@contextmanager
def _progress(name: str, shown: bool) -> Iterator[OnProgress]:
    """A bar with an estimate: first files are checked, then images are evaluated."""
    from tqdm import tqdm

    bar: tqdm[Any] | None = None
    doing = ""

    def advance(what: str, done: int, total: int) -> None:
        nonlocal bar, doing
        if bar is None:
            # Not before there is something to show, or errors at the start would follow an empty bar.
            bar = tqdm(unit="image", mininterval=1, disable=not shown, leave=False)
        if what != doing:
            doing = what
            bar.reset(total)
            # The estimate must not count what an earlier run has done.
            bar.initial = done
            bar.set_description(f"{'checking' if what == 'check' else 'evaluating'} {name}")
        bar.total = total
        bar.update(done - bar.n)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()
