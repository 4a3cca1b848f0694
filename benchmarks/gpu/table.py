"""The figures of ``docs/gpu.md`` from the recorded runs: ``python -m benchmarks.gpu.table`` writes them anew."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["PAGE", "RECORDS", "page_with", "table"]

_ROOT = Path(__file__).resolve().parents[2]
PAGE = _ROOT / "docs" / "gpu.md"
RECORDS = tuple(
    _ROOT / "benchmarks" / "results" / name
    for name in ("gpu-h200.json", "gpu-compiled-h200.json", "gpu-train-h200.json")
)
_BLOCK = re.compile(r"(<!-- figures of a GPU -->\n).*?(<!-- end of the figures -->)", re.DOTALL)


def table() -> str:
    """Markdown tables of speed and agreement, from the JSON files under ``benchmarks/results``."""
    eager, compiled, training = (json.loads(path.read_text(encoding="utf-8")) for path in RECORDS)
    figures = {name: figure for record in (eager, compiled) for name, figure in _figures(record)}
    lines = [
        f"On one {eager['machine']['gpu']}, commit {eager['commit']}, PyTorch {eager['versions']['torch']}:",
        "",
        "| images per second, batch of 32 | tcl-annotate | timm |",
        "|---|---|---|",
    ]
    for title, section, what in (
        ("image tower, float32", "image tower, float32", "float32, batch 32"),
        ("image tower, TF32", "image tower, tf32", "tf32, batch 32"),
        ("image tower, bfloat16 (autocast)", "image tower, bfloat16", "bfloat16, batch 32"),
        ("image tower, bfloat16 weights", "image tower, weights in bfloat16", "weights in bfloat16, batch 32"),
        ("image tower, bfloat16, compiled", "image tower, compiled, bfloat16", "bfloat16, compiled, batch 32"),
        ("encode (TCL), float32", "encode, float32", "float32, batch 32"),
        ("encode (TCL), bfloat16", "encode, bfloat16", "bfloat16, batch 32"),
    ):
        figure = figures[section, what]
        other = figure["details"].get("timm")
        lines.append(f"| {title} | {figure['value']:.0f} | {'' if other is None else f'{other:.0f}'} |")
    lines += ["", "| stage of an image of 448 x 448, bfloat16 | ms |", "|---|---|"]
    for (section, what), figure in figures.items():
        if section == "stages of an image, bfloat16":
            lines.append(f"| {what.removeprefix('bfloat16, ')} | {figure['value']:.1f} |")
    lines += ["", "| agreement with the CPU, all classes of the playground | float32, largest difference |"]
    lines[-1] += " bfloat16, equal pixels |"
    lines.append("|---|---|---|")
    for section in [one["name"] for one in eager["sections"] if one["name"].startswith("parity, playground")]:
        exact = figures[section, "float32, all classes: largest difference of scores"]["value"]
        equal = figures[section, "bfloat16, all classes: decisions equal"]["value"]
        lines.append(f"| {section.removeprefix('parity, playground, ')} | {exact:.1e} | {equal:.2f} % |")
    lines += ["", f"| training step, batch of {training['sizes']['batch']}, bfloat16 | images per second | peak GiB |"]
    lines.append("|---|---|---|")
    for key, title in (("eager", "eager"), ("eager_in_parts", "eager, 4 parts"), ("compiled", "compiled")):
        run = training[key]
        lines.append(f"| {title} | {run['images_per_second']:.0f} | {run['peak_gib']:.1f} |")
    return "\n".join(lines) + "\n"


def page_with(text: str, page: str) -> str:
    """The page with the tables in their place."""
    return _BLOCK.sub(lambda match: match[1] + text + match[2], page)


def _figures(record: dict[str, Any]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    for section in record["sections"]:
        for figure in section["figures"]:
            yield (section["name"], figure["what"]), figure


if __name__ == "__main__":
    PAGE.write_text(page_with(table(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
