"""The command: sections in their order, a table on standard output, everything in a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import limits, parity, speed
from benchmarks.gpu.models import METHODS, ON_PLAYGROUND, RandomModels, Scale
from benchmarks.gpu.sections import Result, Section, format_result, run_sections
from tcl_core.benchmarks.machine import describe_machine, loaded_distributions, revision
from tcl_core.devices import select_device
from tcl_core.errors import SettingsError

__all__ = ["all_sections", "main"]

_OUT = Path("benchmarks/results/gpu.json")
_EXIT_FINE, _EXIT_MISSED, _EXIT_BAD_INPUT = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write.

    Returns:
        1 if a section failed or a bar is missed, 2 if nothing can be measured, else 0.
    """
    options = _parser().parse_args(arguments)
    try:
        device = select_device(options.device)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        _part_of(options.out).touch()
    except (SettingsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _EXIT_BAD_INPUT
    scale = Scale.small() if options.small else Scale()
    sections = [one for one in all_sections(RandomModels(scale, device)) if options.only in one.name]
    if not sections:
        print(f"error: no section has {options.only!r} in its name", file=sys.stderr)
        return _EXIT_BAD_INPUT
    about = {"commit": options.commit or revision(), "small": options.small, "machine": describe_machine(device)}
    print(json.dumps(about, indent=1), flush=True)
    begun = time.perf_counter()

    def tell(results: Sequence[Result]) -> None:
        print(format_result(results[-1]), flush=True)
        record = {**about, "seconds": time.perf_counter() - begun, "versions": loaded_distributions()}
        _write(options.out, {**record, "sections": [result.to_dict() for result in results]})

    with warnings.catch_warnings():
        # Of libraries, about what is slow or will change; they would tear the table apart.
        warnings.simplefilter("ignore")
        results = run_sections(sections, tell, options.limit)
    failed = [result.name for result in results if result.failed]
    print(f"{len(results)} sections in {time.perf_counter() - begun:.0f} s, written to {options.out}")
    if failed:
        print(f"failed, or a bar missed: {'; '.join(failed)}")
    return _EXIT_MISSED if failed else _EXIT_FINE


def all_sections(models: RandomModels) -> list[Section]:
    """The sections in their order; those that take long and matter least come last."""
    device, scale = models.device, models.scale
    sections = [Section(f"image tower, {name}", partial(speed.tower, models, name)) for name in _modes(device)]
    sections.append(Section("image tower, weights in bfloat16", partial(speed.tower_in_bfloat16, models)))
    for name in ("bfloat16", "float32"):
        sections.append(Section(f"encode, {name}", partial(speed.encoding, models, name)))
    sections.append(Section("stages of an image, bfloat16", partial(speed.stages, models, "bfloat16")))
    sections.append(Section("file to COCO, bfloat16", partial(speed.file_to_coco, models, "bfloat16", False)))
    sections.append(Section("file to COCO, playground", partial(speed.file_to_coco, models, "bfloat16", True)))
    sections.append(Section("large image, bfloat16", partial(limits.large_image, models, "bfloat16", True)))
    sections.append(Section("large image, float32", partial(limits.large_image, models, "float32", False)))
    sections.append(Section("out of memory", partial(limits.out_of_memory, models)))
    sections.append(Section("parity, texts", partial(parity.text_parity, models)))
    for refine in (False, True):
        with_pamr = "with PAMR" if refine else "without PAMR"
        for method in METHODS:
            scenes = scale.scenes if method == "tcl" and refine else scale.method_scenes
            if method in ON_PLAYGROUND:
                sections.append(
                    Section(
                        f"parity, playground, {method} {with_pamr}",
                        partial(parity.playground_parity, method, device, scenes, refine),
                    )
                )
            sections.append(
                Section(
                    f"parity, random weights, {method} {with_pamr}",
                    partial(parity.random_parity, models, method, refine),
                )
            )
    for name in reversed(_modes(device)[1:]):
        work = partial(speed.compiled_tower, models, name)
        sections.append(Section(f"image tower, compiled, {name}", work, optional=True))
    return sections


def _modes(device: torch.device) -> list[str]:
    # A CPU has no TF32.
    return ["float32", "tf32", "bfloat16"] if device.type == "cuda" else ["float32", "bfloat16"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Measure speed, memory and agreement with the CPU on a GPU. Let the machine do nothing else.",
        epilog="The exit code is 1 if a part failed or a bar is missed, and 2 if nothing can be measured.",
    )
    parser.add_argument("--out", type=Path, default=_OUT, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--small", action="store_true", help="a tiny network, to try the benchmark itself")
    parser.add_argument("--only", default="", metavar="TEXT", help="sections with this in their name")
    parser.add_argument("--commit", default="", metavar="HASH", help="what is measured, where there is no git")
    parser.add_argument(
        "--limit",
        type=float,
        default=170.0,
        metavar="SECONDS",
        help="after this, compiling is left out (default: %(default)s)",
    )
    return parser


def _write(path: Path, record: dict[str, Any]) -> None:
    """Replace the file at once, so that one that is there can be read."""
    part = _part_of(path)
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def _part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
