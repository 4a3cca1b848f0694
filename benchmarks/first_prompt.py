"""Prompts of TCL at the size of ViT-B/16 beside another revision: ``python -m benchmarks.first_prompt``.

Each round runs every mode in a process of its own, one after the other, and medians over the rounds are compared. First
prompts and texts are compared in CPU time, which other work disturbs least; second prompts are waited for, so their
time on the clock counts, and the machine has to be idle for them. Weights are random: times do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare_revision import REPOSITORY, BenchmarkError, last_line, worktree
from tcl_core.backends import available_backends
from tcl_core.benchmarks.machine import describe_machine, loaded_distributions, revision
from tcl_core.devices import has_native_bfloat16
from tcl_core.methods.semantic_unit import PIXELS, UNIT

__all__ = ["Mode", "format_table", "main", "modes", "run_mode"]

OFFICIAL = 1.07
"""CPU time of the official program's first prompt by that of the revision 56cd0a1, with the same weights in float32."""

_REPEATS = 3
_FULL = {
    "side": 448,
    "embed_dim": 512,
    "vision": {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "head_width": 64},
    "text": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}

# Both programs build the same network; only the names of their parts differ.
_BUILD_REFERENCE = """
from tcl_core.clip import FrozenClip
from tcl_core.methods.tcl.model import TCL
from tcl_core.models import Model
from tcl_core.segmenter import Segmenter
from tcl_core.tokenizer import OpenClipTokenizer
from tcl_core.vocabulary import Vocabulary
from tcl_core.weights.metadata import ModelMetadata, Preprocess

def vocabulary(words):
    return Vocabulary.from_options(words)

def build(backend, precision, folder):
    clip = FrozenClip(make_clip())
    method = finished(TCL(clip))
    preprocess = Preprocess(*PREPROCESS)
    return Segmenter(Model(
        name="random", method=method, clip=clip, tokenizer=OpenClipTokenizer(77), preprocess=preprocess,
        templates="custom", background_threshold={"pamr": 0.4, "plain": 0.45}, weights_sha256="0" * 64,
        device=torch.device("cpu"), precision=precision,
        metadata=ModelMetadata(name="random", preprocess=preprocess, method="tcl")))
"""
_BUILD_OWN = """
from pathlib import Path
from tcl_core.backends import make_backend
from tcl_core.methods.tcl import TCL
from tcl_core.models import Model
from tcl_core.models.metadata import ModelMetadata, Preprocess
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import OpenClipTokenizer
from tcl_core.vocabulary import Vocabulary

def vocabulary(words):
    # The reference knows no names that compete.
    return Vocabulary.from_options(words, background_names=())

def build(backend, precision, folder):
    method = finished(TCL(FrozenClip(make_clip(), OpenClipTokenizer(77)))).configured(OPTIONS)
    preprocess = Preprocess(*PREPROCESS)
    return Segmenter(Model(
        name="random", method=method, preprocess=preprocess, templates="custom",
        background_threshold={"pamr": 0.4, "plain": 0.45}, weights_sha256="0" * 64, device=torch.device("cpu"),
        precision=precision, metadata=ModelMetadata(name="random", preprocess=preprocess, method="tcl"),
        backend=make_backend(backend, Path(folder)).for_method(method)))
"""
_MEASURE = """
import json, resource, statistics, sys, time
import numpy as np, open_clip, torch

NETWORK, REPEATS, MANY, OPTIONS = json.loads(sys.argv[4])
SIDE = NETWORK["side"]
PREPROCESS = ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758), SIDE, 4 * SIDE, SIDE, SIDE // 2)
WORDS = ("aeroplane bicycle bird boat bottle bus car cat chair cow table dog horse motorbike person plant sheep sofa "
         "train monitor").split()

def make_clip():
    torch.manual_seed(0)
    return open_clip.CLIP(NETWORK["embed_dim"], NETWORK["vision"], NETWORK["text"], quick_gelu=True)

def finished(method):
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if name.endswith("gate.gate"):
                parameter.fill_(0.5)  # a gate that is shut would skip work
    return method.eval().requires_grad_(False)

def took(work):
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - clock

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

segmenter = build(sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3])
random = np.random.default_rng(0)
draw = lambda height, width: random.integers(0, 256, (height, width, 3), dtype=np.uint8)
labels = vocabulary(WORDS)
segmenter.embed_prompts([prompt for _, prompt in labels.prompts])
segmenter.segment_image(draw(SIDE, SIDE), labels)
figures = {"first": [], "known": [], "new": []}
for _ in range(REPEATS):
    image = draw(SIDE, SIDE)
    figures["first"].append(took(lambda: segmenter.segment_image(image, labels)))
figures["one image MB"] = [(peak(), peak())]
features = segmenter.encode(draw(SIDE, SIDE * 3 // 2))
segmenter.segment(features, labels)
for number in range(REPEATS):
    figures["known"].append(took(lambda: segmenter.segment(features, labels)))
    more = vocabulary([*WORDS, f"wombat {number}"])
    figures["new"].append(took(lambda: segmenter.segment(features, more)))
if MANY:
    names = [f"thing number {number}" for number in range(MANY)]
    figures["texts"] = [took(lambda: segmenter.embed_prompts(names))]
print(json.dumps({name: [statistics.median(column) for column in zip(*rows)] for name, rows in figures.items()}))
"""


@dataclass(frozen=True)
class Mode:
    """How a revision runs.

    Attributes:
        name: in the table.
        backend: of this checkout; empty for the reference.
        precision: name of a dtype.
        unit: whether the adaptive semantic unit is on, as it is by default; the reference does not know it.
    """

    name: str
    backend: str
    precision: str
    unit: bool = False


def modes() -> list[Mode]:
    """The reference in float32, then what this machine offers: the backends in float32, and in bfloat16 if native.

    Last come the backends in float32 with the adaptive semantic unit.
    """
    backends = [name for name in available_backends("cpu") if name != "compile"]
    precisions = ["float32", *(["bfloat16"] if has_native_bfloat16() else [])]
    own = [Mode(f"{backend}, {precision}", backend, precision) for precision in precisions for backend in backends]
    grouped = [Mode(f"{backend}, float32, unit", backend, "float32", unit=True) for backend in backends]
    return [Mode("reference, float32", "", "float32"), *own, *grouped]


def format_table(measured: Mapping[str, Mapping[str, Sequence[float]]], many: int) -> str:
    """Medians of each mode, with ratios to the reference, which is the first.

    Args:
        measured: by name of the mode, for each figure the CPU time and the time on the clock in seconds, or megabytes.
        many: names of the row of texts.

    >>> one = {"first": (2.0, 1.0), "known": (0.5, 0.3), "new": (1.0, 0.6), "one image MB": (900.0, 900.0)}
    >>> two = {"first": (1.0, 0.5), "known": (0.1, 0.05), "new": (0.5, 0.2), "one image MB": (800.0, 800.0)}
    >>> print(format_table({"reference": one, "torch": two}, 0))
    | mode | first prompt, CPU ms | x reference | x official | known words, ms | new words, ms | peak MB |
    |---|---|---|---|---|---|---|
    | reference | 2000 | 1.00 | 1.07 | 300 | 600 | 900 |
    | torch | 1000 | 2.00 | 2.14 | 50 | 200 | 800 |
    """
    head = ["mode", "first prompt, CPU ms", "x reference", "x official", "known words, ms", "new words, ms", "peak MB"]
    if many:
        head += [f"{many} names, CPU ms", "x reference"]
    rows = [head, ["---"] * len(head)]
    reference = next(iter(measured.values()))
    for name, figures in measured.items():
        first = figures["first"][0]
        ratio = reference["first"][0] / first
        row = [name, f"{1000 * first:.0f}", f"{ratio:.2f}", f"{OFFICIAL * ratio:.2f}"]
        row += [f"{1000 * figures[figure][1]:.0f}" for figure in ("known", "new")]
        row.append(f"{figures['one image MB'][0]:.0f}")
        if many:
            texts = figures["texts"][0]
            row += [f"{1000 * texts:.0f}", f"{reference['texts'][0] / texts:.2f}"]
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" if row[0] != "---" else "|" + "---|" * len(head) for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table; returns 2 if it cannot be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", default="56cd0a1", metavar="REVISION", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--names", type=int, default=150, metavar="N", help="texts to embed; default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures, with machine and versions")
    options = parser.parse_args(arguments)
    chosen = modes()
    found: dict[Mode, list[dict[str, list[float]]]] = {mode: [] for mode in chosen}
    try:
        with worktree(options.reference) as tree, tempfile.TemporaryDirectory() as networks:
            for number in range(options.rounds):
                for mode in chosen:
                    print(f"round {number + 1} of {options.rounds}: {mode.name}", file=sys.stderr, flush=True)
                    found[mode].append(
                        run_mode(mode, tree if not mode.backend else REPOSITORY, networks, options.names)
                    )
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    measured = {
        mode.name: {name: [statistics.median(column) for column in zip(*(one[name] for one in rounds), strict=True)]
               for name in rounds[0]}
        for mode, rounds in found.items()
    }  # fmt: skip
    print(format_table(measured, options.names))
    if options.json is not None:
        content = {
            "machine": describe_machine(torch.device("cpu")),
            "versions": loaded_distributions(),
            "commit": revision(),
            "reference": options.reference,
            "rounds": options.rounds,
            "names": options.names,
            "figures": measured,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def run_mode(
    mode: Mode, tree: Path, networks: str, many: int, network: Mapping[str, Any] = _FULL
) -> dict[str, list[float]]:
    """Measure a mode in a process of its own.

    Args:
        mode: one of `modes`.
        tree: checkout of its revision.
        networks: folder for exported networks.
        many: how many names to embed.
        network: its size, as open_clip describes it, and the side of its windows in pixels.

    Returns:
        For each figure the CPU time and the time on the clock in seconds, or megabytes twice.

    Raises:
        BenchmarkError: the process failed.
    """
    build = _BUILD_OWN if mode.backend else _BUILD_REFERENCE
    imports, rest = _MEASURE.split("segmenter = build", 1)
    code = f"{imports}\n{build}\nsegmenter = build{rest}"
    settings = json.dumps([network, _REPEATS, many, UNIT if mode.unit else PIXELS])
    command = [sys.executable, "-c", code, mode.backend, mode.precision, networks, settings]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    process = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        raise BenchmarkError(f"{mode.name} failed: {last_line(process.stderr)}")
    found: dict[str, list[float]] = json.loads(last_line(process.stdout))
    return found


if __name__ == "__main__":
    sys.exit(main())
