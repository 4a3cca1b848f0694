"""The parts of the documents that are written from recorded results."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcl_core.errors import SettingsError
from tcl_core.evaluation.playground import EvaluationRow, format_rows
from tcl_core.evaluation.projects import ProjectRow, format_projects
from tcl_core.methods.registry import method_class
from tcl_core.methods.semantic_unit import UnitOptions
from training.playground.method_tables import comparison, unit_gains

__all__ = ["BASELINE", "MAIN", "Results", "Target", "parts_of", "targets_of", "with_parts", "write_pages"]

Results = Mapping[str, Any]
"""Contents of the files ``table``, ``projects``, ``training-free``, ``methods``, ``units`` and ``unit-thresholds``
(``.json``) by name."""

MAIN, BASELINE = "TCL + PAMR", "dense baseline: CLIP's value path"
_IN_UNITS = "TCL + PAMR + unit"
_UNBIASED = "TCL + PAMR, prompts not debiased"
_METHODS = {
    "maskclip": "MaskCLIP",
    "maskclip-refined": "MaskCLIP, refined",
    "sclip": "SCLIP",
    "clearclip": "ClearCLIP",
    "naclip": "NACLIP",
    "scclip": "SC-CLIP",
}
_CODE = {
    "tcl": "TCL",
    "tcl-two": "TCL on CoDe's captions",
    "code-paper": "CoDe with the paper's weights",
    "code": "CoDe",
    "code-regions-only": "CoDe without the contrast of regions and texts",
    "code-brief": "CoDe on TCL's captions",
    "code-brief-regions-only": "CoDe on TCL's captions, without that contrast",
}
_CODE_SETTINGS = {
    "code-paper": "the paper's",
    "code-neg": "no false negatives, area of negatives at 0.4",
    "code-neg-double": "and two convolutions",
    "code": "and the contrast of regions and texts at 0.1",
    "code-regions-only": "and without the contrast of regions and texts",
}
_MGCA_STYLE = {
    "tcl": "TCL",
    "tcl-unit": "TCL, with the unit",
    "mgca-style-object": "object",
    "mgca-style-region": "+ region",
    "mgca-style-pixel": "+ pixel",
    "mgca-style-unit": "+ pixel, with the unit",
}
_MGCA_TRIED = {
    "mgca-style-pixel-frozen": "all terms, as above",
    "mgca-style-pixel-block": "and the copied blocks trained in the stage `all`",
    "mgca-style-pixel-block-light": "and region and pixel at 0.02 instead of 0.1",
    "mgca-style-object-block": "and no region or pixel: object alone",
}
_FIGURES = ("seen", "seen_kinds", "seen_stuff", "held_out", "held_out_kinds", "held_out_stuff")


class Target:
    """A bar of the project and the recorded figure.

    Args:
        name: what is measured.
        value: figure.
        least: bound from below, or ``None``.
        most: bound from above, or ``None``.
    """

    def __init__(self, name: str, value: float, least: float | None = None, most: float | None = None) -> None:
        self.name, self.value = name, value
        self.met = (least is None or value >= least) and (most is None or value <= most)
        self.bound = f"at least {least:g}" if least is not None else f"at most {most:g}"


def targets_of(table: Mapping[str, Any]) -> list[Target]:
    """The bars for the embedded model."""
    rows = {row["variant"]: row for row in table["rows"]}
    main, baseline = rows[MAIN], rows[BASELINE]
    return [
        Target(f"{MAIN}, seen combinations", main["seen"], least=60),
        Target("points above the dense baseline", main["seen"] - baseline["seen"], least=15),
        Target("points lost on held-out combinations", main["lost"], most=10),
        Target("size of the model file in MB", table["bytes"] / 1e6, most=25),
    ]


def parts_of(results: Results) -> dict[Path, dict[str, str]]:
    """Text of every generated part that these results are for, by the document and the name of the part."""
    table = results["table"]
    parts: dict[Path, dict[str, str]] = {}
    if "methods" in results:
        tables = {
            ("docs/code.md", "comparison"): _CODE,
            ("docs/code.md", "settings"): _CODE_SETTINGS,
            ("docs/mgca.md", "comparison"): _MGCA_STYLE,
            ("docs/mgca.md", "tried"): _MGCA_TRIED,
        }
        for (page, part), names in tables.items():
            text = comparison(results["methods"], table["weights_sha256"], names)
            parts.setdefault(Path(page), {})[part] = text
    for name, part in (("units", "unit"), ("unit-thresholds", "thresholds")):
        if name in results:
            parts.setdefault(Path("docs/mgca.md"), {})[part] = _units(results[name], name)
    if "projects" not in results:
        return parts
    return parts | {
        Path("docs/playground.md"): {
            "table": _table(table),
            "projects": _projects(results["projects"], table),
            "run": _run(table),
        },
        Path("docs/history.md"): {"made": _made(table)},
        Path("docs/training-free.md"): {"table": _training_free(results)},
        Path("docs/which-model.md"): {"table": _which(results)},
    }


def with_parts(page: str, parts: Mapping[str, str], name: str) -> str:
    r"""A page with other text between its markers.

    Args:
        page: Markdown.
        parts: text by the name in the markers.
        name: of the page, for the message.

    Raises:
        SettingsError: a marker is missing.

    Example:
        >>> print(with_parts("<!-- generated: a -->\nold\n<!-- end of a -->\n", {"a": "new"}, "page"))
        <!-- generated: a -->
        new
        <!-- end of a -->
        <BLANKLINE>
    """
    for part, text in parts.items():
        begin, end = f"<!-- generated: {part} -->", f"<!-- end of {part} -->"
        before, found, rest = page.partition(f"{begin}\n")
        _, closed, after = rest.partition(end)
        if not found or not closed or begin in after or end in after:
            raise SettingsError(f"{name}: must have the markers {begin} and {end} once; put them back")
        page = f"{before}{begin}\n{text}\n{end}{after}"
    return page


def write_pages(repository: Path, results: Results) -> list[Path]:
    """Write the generated parts into the documents of a checkout; returns the documents."""
    written = []
    for place, parts in parts_of(results).items():
        path = repository / place
        content = with_parts(path.read_text(encoding="utf-8"), parts, str(path))
        path.write_text(content, encoding="utf-8")
        written.append(path)
    return written


def _table(table: Mapping[str, Any]) -> str:
    rows = {row["variant"]: row for row in table["rows"]}
    keys = ("variant", *_FIGURES)
    seeds = table["seeds"]
    lines = [
        format_rows([EvaluationRow(**{key: row[key] for key in keys}) for row in table["rows"]]),
        "",
        _paragraph(
            f"{table['scenes']} scenes in each set, with the seeds {seeds['seen']} (seen) and {seeds['held-out']} "
            "(held out). The project's targets:"
        ),
        "",
        "| target | | measured | |",
        "|---|---|---|---|",
        *(
            f"| {target.name} | {target.bound} | {target.value:.1f} | {'met' if target.met else '**missed**'} |"
            for target in targets_of(table)
        ),
    ]
    if _UNBIASED in rows:
        main, biased = rows[MAIN], rows[_UNBIASED]
        lines += [
            "",
            _paragraph(
                f"Without debiasing, {biased['lost']:.1f} points are lost on held-out combinations. Debiasing changes "
                f"the result on held-out combinations by {main['held_out'] - biased['held_out']:+.1f} points and on "
                f"seen ones by {main['seen'] - biased['seen']:+.1f}."
            ),
        ]
    if spread := table.get("spread"):
        lines += ["", *_spread(spread)]
    return "\n".join([*lines, *_remark(table, "table")])


def _spread(spread: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        _paragraph(
            f"{MAIN} after {len(spread)} training{'s' * (len(spread) > 1)} of the TCL stage on the same CLIP with "
            "different seeds; the first one is embedded:"
        ),
        "",
        "| seed | seen | held out | lost |",
        "|---|---|---|---|",
    ]
    keys = ("seen", "held_out", "lost")
    lines += [f"| {one['seed']} | " + " | ".join(f"{one[key]:.1f}" for key in keys) + " |" for one in spread]
    found = np.array([[one[key] for key in keys] for one in spread])
    if len(spread) > 1:
        pairs = zip(found.mean(axis=0), found.std(axis=0, ddof=1), strict=True)
        lines.append("| mean ± deviation | " + " | ".join(f"{mean:.1f} ± {std:.1f}" for mean, std in pairs) + " |")
    return lines


def _projects(projects: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    rows = [ProjectRow(**row) for row in projects["rows"]]
    text = f"{projects['scenes']} scenes; scenes and draws have the seed {projects['seed']}."
    return "\n".join([format_projects(rows), "", text, *_remark(table, "projects")])


def _run(table: Mapping[str, Any]) -> str:
    run = table.get("run")
    if run is None:
        return "\n".join(table["remarks"]["run"])
    machine, total = run["machine"], _total(run)
    device = f", on one {machine['gpu']} with" if machine.get("gpu") else " on"
    lines = [
        _paragraph(
            f"The embedded weights come from one run at commit `{run['commit'][:12]}`, in {run['precision']}{device} "
            f"{machine['threads']} cores ({machine['processor']}, {machine['vectors']}). It took "
            f"{total['wall'] / 60:.0f} minutes and was interrupted {_times(run['interruptions'])}; "
            "[`run.jsonl`](../training/playground/results/run.jsonl) is its record."
        ),
        "",
        "| part | minutes | CPU minutes |",
        "|---|---|---|",
    ]
    for name, spent in {**run["times"], "in all": total}.items():
        lines.append(f"| {name} | {spent['wall'] / 60:.1f} | {spent['cpu'] / 60:.1f} |")
    return "\n".join(lines)


def _total(run: Mapping[str, Any]) -> dict[str, float]:
    return {key: sum(spent[key] for spent in run["times"].values()) for key in ("wall", "cpu")}


def _times(count: int) -> str:
    return {0: "not once", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _made(table: Mapping[str, Any]) -> str:
    run = table.get("run")
    if run is None:
        return "\n".join(table["remarks"]["made"])
    seeds = table["seeds"]
    made = (
        f"The embedded weights come from one run of `make train-playground` at commit `{run['commit'][:12]}`, from the "
        "first image to the model file. [Its record](../training/playground/results/run.jsonl) lists the settings, the "
        "machine, the time of each part and every interruption (the run was interrupted "
        f"{_times(run['interruptions'])})."
    )
    chosen = (
        "The settings were chosen before that run, on scenes with other seeds and, in earlier versions, on scenes of a "
        f"former table. The [table](playground.md#scoring-a-model) is of test scenes with new seeds ({seeds['seen']} "
        f"and {seeds['held-out']}), on which nothing was chosen and which were scored once, after the run."
    )
    return f"{_paragraph(made)}\n\n{_paragraph(chosen)}"


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _training_free(results: Results) -> str:
    lines = ["| | seen: all | kinds | stuff | held out: all | kinds | stuff |", "|---|---|---|---|---|---|---|"]
    for entry in results["training-free"]:
        name = _METHODS[entry["model"].partition(":")[0]]
        for row in entry["rows"]:
            lines.append(_row(name if row["variant"] == "as it is" else f"{name} {row['variant']}", row))
    own = {row["variant"]: row for row in results["table"]["rows"]}
    lines += [_row(f"**{name}**", own[name]) for name in ("TCL", MAIN, _IN_UNITS)]
    return "\n".join(lines)


def _units(units: Mapping[str, Any], name: str) -> str:
    about = (
        f"Mean IoU in percent over {units['scenes']} seen and {units['scenes']} held-out {units['split']} scenes, and "
        f"what the unit adds to it. [`{name}.json`](../training/playground/results/{name}.json) has every figure."
    )
    return f"{unit_gains(units['scores'])}\n\n{_paragraph(about)}"


def _row(name: str, row: Mapping[str, Any]) -> str:
    return f"| {name} | " + " | ".join(f"{np.round(row[key], 1):.1f}" for key in _FIGURES) + " |"


def _which(results: Results) -> str:
    """Each method with refinement, and with the unit where that is its default."""
    refined = {}
    for entry in results["training-free"]:
        method = entry["model"].partition(":")[0]
        (row,) = (
            row for row in entry["rows"] if row["variant"] == ("+ PAMR + unit" if _unit_is_on(method) else "+ PAMR")
        )
        if method != "maskclip-refined":
            refined[f"`{entry['model']}`"] = row
    own = _IN_UNITS if _unit_is_on("tcl") else MAIN
    refined["TCL (`playground`)"] = next(row for row in results["table"]["rows"] if row["variant"] == own)
    ordered = sorted(refined.items(), key=lambda item: -item[1]["seen"])
    lines = ["| | seen | held out |", "|---|---|---|"]
    return "\n".join(lines + [f"| {name} | {row['seen']:.1f} | {row['held_out']:.1f} |" for name, row in ordered])


def _unit_is_on(method: str) -> bool:
    options = method_class(method).options_class()
    return isinstance(options, UnitOptions) and options.unit_points > 0


def _remark(table: Mapping[str, Any], part: str) -> list[str]:
    """What results of a former layout say of themselves."""
    found = table.get("remarks", {}).get(part)
    return ["", *found] if found else []
