"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tcl_core.cli.places import INPUT_PATH
from tcl_core.errors import SettingsError
from tcl_core.vocabulary import Vocabulary
from tcl_core.vocabulary.files import background_names_from_text
from tcl_core.vocabulary.templates import TEMPLATE_SETS

if TYPE_CHECKING:
    from tcl_core.segmentation.segmenter import Segmenter

__all__ = [
    "DEFAULT_MODEL",
    "GEOMETRIES",
    "MinAreaType",
    "WorkersType",
    "batch_size_option",
    "bit_depth_option",
    "device_option",
    "geometry_option",
    "make_segmenter",
    "make_vocabulary",
    "max_pixels_option",
    "method_option",
    "min_area_option",
    "model_options",
    "backend_option",
    "precision_option",
    "vocabulary_options",
    "workers_option",
]

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_MODEL = "playground"
"""The model that comes with the package."""

GEOMETRIES = ("polygon", "keyhole", "rle")
"""How regions can be written to COCO."""

geometry_option = click.option(
    "--geometry",
    type=click.Choice(GEOMETRIES),
    default="polygon",
    show_default=True,
    help="How COCO regions are written: polygon cuts regions with holes into simple rings; keyhole bridges holes to "
    "get one ring; rle is exact, but many readers drop it.",
)
"""``--geometry``: how regions are written to COCO."""


class MinAreaType(click.ParamType):
    """A number of pixels, or ``auto``."""

    name = "pixels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number, or ``"auto"``."""
        # Not `read_min_area`, whose package loads the network's library.
        if value == "auto" or isinstance(value, int):
            return value
        if not (value.isascii() and value.isdigit()):
            self.fail(f"{value!r} is not valid; give auto, or a number of pixels, 0 or more", param, ctx)
        return int(value)


min_area_option = click.option(
    "--min-area",
    type=MinAreaType(),
    default="auto",
    show_default=True,
    metavar="N",
    help="Merge regions with fewer pixels into their surroundings. auto: a quarter of the model's patch; 0: keep all.",
)
"""``--min-area``: when a region of a prediction is taken for noise."""


def _read_bit_depth(_: click.Context, __: click.Parameter, given: str) -> int | None:
    if given == "auto":
        return None
    if given.isascii() and given.isdigit() and 1 <= int(given) <= 16:
        return int(given)
    raise SettingsError(f"--bit-depth {given}: give auto, or a number of bits from 1 to 16")


device_option = click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda, cuda:N or mps."
)
"""``--device``: where the network runs."""

precision_option = click.option(
    "--precision",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto, float32, bfloat16, float16, or int8 (see 'tcl-annotate models quantize').",
)
"""``--precision``: what the network computes in."""


backend_option = click.option(
    "--backend",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="What runs the network: auto, torch, compile or openvino (extra 'openvino').",
)
"""``--backend``: what runs the network."""


def batch_size_option(what: str) -> Callable[[F], F]:
    """``--batch-size``, 8 by default; the help says what a batch is of."""
    return click.option(
        "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, metavar="N", help=what
    )


def max_pixels_option(what: str) -> Callable[[F], F]:
    """``--max-pixels``, 200 million by default; the help says what happens to larger images."""
    return click.option(
        "--max-pixels", type=click.IntRange(min=1), default=200_000_000, show_default=True, metavar="N", help=what
    )


bit_depth_option = click.option(
    "--bit-depth",
    default="auto",
    show_default=True,
    callback=_read_bit_depth,
    metavar="BITS",
    help="Number of bits that 16-bit images use, such as 12; the highest value is white. auto detects 8, 10, 12, 14 or "
    "16 from the values of each image.",
)
"""``--bit-depth``: how bright images of more than 8 bits are."""


class WorkersType(click.ParamType):
    """``auto``, or a number of processes."""

    name = "processes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number, or ``"auto"``."""
        if value == "auto" or isinstance(value, int):
            return value
        if not (value.isascii() and value.isdigit()):
            self.fail(f"{value!r} is not valid; give auto, or a number of processes, 0 or more", param, ctx)
        return int(value)


workers_option = click.option(
    "--workers",
    type=WorkersType(),
    default="auto",
    show_default=True,
    metavar="N",
    help="Processes that decode images and trace polygons while the network runs; 0 for none. auto: one per core, at "
    "most 16, and none for a few images. The results do not depend on it.",
)
"""``--workers``: how many processes work beside the network."""


def vocabulary_options(function: F) -> F:
    """``--labels``, ``--label``, ``--background``, its threshold and names, and ``--templates``."""
    for option in reversed(
        [
            click.option("--labels", "labels_file", type=INPUT_PATH, metavar="FILE", help="Label file (YAML)."),
            click.option(
                "--label",
                "label_options",
                multiple=True,
                metavar="NAME[=PROMPT,...]",
                help='A label and its prompts, such as "Sofa=sofa,couch"; repeatable. Without prompts, the name is the '
                "prompt.",
            ),
            click.option(
                "--background/--no-background",
                default=None,
                help="Whether pixels may stay unlabeled. Default: from the label file, otherwise yes.",
            ),
            click.option(
                "--background-threshold",
                type=float,
                metavar="T",
                help="Score, from 0 to 1, that a label must exceed to win against the background. Default: from the "
                "label file, otherwise the model's.",
            ),
            click.option(
                "--background-names",
                metavar="NAME,NAME",
                help="Names that compete with the labels; pixels they win stay unlabeled. auto: the model's list of "
                "other things that images may show (see --explain); none: no names. Default: from the label file, "
                "otherwise auto.",
            ),
            click.option(
                "--templates",
                metavar="NAME",
                help=f"Template set for the prompts: {', '.join(TEMPLATE_SETS)}. Default: from the label file, "
                "otherwise the model's.",
            ),
        ]
    ):
        function = option(function)
    return function


def make_vocabulary(
    labels_file: Path | None,
    label_options: tuple[str, ...],
    background: bool | None,
    background_threshold: float | None,
    background_names: str | None,
    templates: str | None,
) -> Vocabulary:
    """The vocabulary of the shared options; options come before what the label file says.

    Raises:
        VocabularyError: if a label, prompt, threshold or template set cannot be used.
        SettingsError: if labels are given both ways or not at all.
    """
    if labels_file is not None and label_options:
        raise SettingsError("--labels and --label cannot be combined; use one of them")
    if labels_file is None and not label_options:
        raise SettingsError('no labels: pass --labels FILE, or --label "NAME=PROMPT,PROMPT" for each label')
    if background is False and background_threshold is not None:
        raise SettingsError("--no-background and --background-threshold cannot be combined; use one of them")
    if background is False and background_names is not None:
        raise SettingsError("--no-background and --background-names cannot be combined; use one of them")
    vocabulary = Vocabulary.from_file(labels_file) if labels_file else Vocabulary.from_options(label_options)
    if background is not None:
        kept = vocabulary.background_threshold if background else None
        names = vocabulary.background_names if background else None
        vocabulary = replace(vocabulary, background=background, background_threshold=kept, background_names=names)
    if background_threshold is not None:
        vocabulary = replace(vocabulary, background=True, background_threshold=background_threshold)
    if background_names is not None:
        names = background_names_from_text(background_names)
        vocabulary = replace(vocabulary, background=True, background_names=names)
    if templates is not None:
        vocabulary = replace(vocabulary, templates=templates)
    return vocabulary


def _read_options(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """``NAME=VALUE`` texts as a mapping; the method judges names and values."""
    from tcl_core.methods.options import values_from_texts

    return values_from_texts(given, "--option")


def method_option(what: str) -> Callable[[F], F]:
    """``--option``, repeatable, as a dict of texts by name; the help says what it is for."""
    return click.option(
        "--option", "option_values", multiple=True, callback=_read_options, metavar="NAME=VALUE", help=what
    )


def model_options(function: F) -> F:
    """``--model``, ``--refine``, ``--option``, ``--device``, ``--precision``, ``--backend`` and ``--batch-size``."""
    for option in reversed(
        [
            click.option(
                "--model",
                default=DEFAULT_MODEL,
                show_default=True,
                metavar="NAME",
                help="Name of a model (see 'tcl-annotate models list') or path of a model file.",
            ),
            click.option(
                "--refine/--no-refine",
                default=True,
                help="Refine masks along image edges (PAMR); on by default. --no-refine gives coarser masks and saves "
                "little time unless the model is small.",
            ),
            method_option(
                "Option of the model's method, such as kp_weight=0.2; repeatable. 'tcl-annotate models options NAME' "
                "lists the options."
            ),
            device_option,
            precision_option,
            backend_option,
            batch_size_option("Images and windows per forward pass; larger batches need more memory."),
        ]
    ):
        function = option(function)
    return function


def make_segmenter(
    model: str,
    refine: bool,
    option_values: Mapping[str, str],
    device: str,
    precision: str,
    batch_size: int,
    backend: str = "auto",
) -> Segmenter:
    """Load the model of the shared options.

    Raises:
        WeightsError: if there is no such model, or its file cannot be used.
        SettingsError: if the device, the precision, the backend or a number is out of range.
    """
    from tcl_core.models import load_model
    from tcl_core.models.registry import check_options
    from tcl_core.segmentation.segmenter import Segmenter

    if option_values:
        # Before the weights are read, which takes a while.
        check_options(model, option_values)
    loaded = load_model(model, device=device, precision=precision, backend=backend)
    return Segmenter(loaded, refine=refine, options=option_values, batch_size=batch_size)
