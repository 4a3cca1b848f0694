"""The markup of the preview: templates, which escape every text that comes from outside."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tcl_core.types import Region
from tcl_core.vocabulary import Vocabulary

__all__ = ["page_name", "render_page", "render_regions", "render_result"]

_MAX_NAMES = 8
"""Background names listed below an image before it is enlarged."""


def render_page(
    title: str,
    cards: Sequence[Mapping[str, Any]],
    vocabulary: Vocabulary,
    counts: Mapping[int, int],
    kinds: Mapping[str, int],
    settings: Mapping[str, str],
    total: int,
    page: int,
    pages: int,
    unlabeled: bool = False,
    columns: Sequence[str] = (),
    groups: bool = False,
) -> str:
    """One whole page as HTML, with style and script inside, so that it needs no other file but its images.

    Args:
        title: heading.
        cards: the images of this page, as :class:`tcl_core.preview.page.PreviewWriter` stores them.
        vocabulary: labels of the legend, in order.
        counts: number of regions of each label id over all pages.
        kinds: number of images that are ``found``, ``empty`` and ``failed`` over all pages.
        settings: names and values printed at the foot.
        total: number of images of the job.
        page: this page, counted from 0.
        pages: number of pages.
        unlabeled: whether an image on any page has pixels that background names won, so that there is a layer to show.
        groups: whether an image on any page has groups without labels, so that there is a layer to show.
        columns: headings where each image has several cards, side by side; empty for one card to an image.
    """
    kinds = {kind: kinds.get(kind, 0) for kind in ("found", "empty", "failed")}
    figures = {
        "regions": sum(counts.values()),
        "labeled": kinds["found"],
        "without regions": kinds["empty"],
        "skipped": kinds["failed"],
    }
    if columns:
        figures = {"images": total // len(columns), "models": len(columns)}
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            cards=cards,
            labels=vocabulary.labels,
            names=vocabulary.names,
            colors=_hex_colors(vocabulary),
            counts=counts,
            kinds=kinds,
            figures=figures,
            settings=settings,
            done=sum(kinds.values()),
            total=total,
            page=page,
            pages=pages,
            near=_near(page, pages),
            unlabeled=unlabeled,
            groups=groups,
            columns=columns,
            max_names=_MAX_NAMES,
            style=_asset("page.css"),
            script=_asset("page.js"),
        )
    )


def render_regions(paths: Sequence[tuple[Region, str, int]]) -> str:
    """SVG ``<path>`` elements of regions.

    Args:
        paths: regions with their outlines as SVG path data and the number of their vertices.
    """
    return _environment().get_template("regions.svg.j2").render(paths=paths)


def render_result(
    name: str, size: tuple[int, int], overlay: bytes, shares: Sequence[Any], vocabulary: Vocabulary
) -> str:
    """One image under its masks and a table of its labels, as a piece of HTML that needs no other file.

    Args:
        name: of the image.
        size: its width and height.
        overlay: PNG of the image under its masks.
        shares: one for each label of the vocabulary, with ``name``, ``regions``, ``share`` and ``score``.
        vocabulary: gives the colors.
    """
    rows = list(zip(shares, _hex_colors(vocabulary), strict=True))
    return (
        _environment()
        .get_template("result.html.j2")
        .render(
            name=name,
            size=size,
            overlay=base64.b64encode(overlay).decode("ascii"),
            found=[(row, color) for row, color in rows if row.regions],
            missing=[row.name for row in shares if not row.regions],
        )
    )


def page_name(page: int) -> str:
    """File name of page ``page``, counted from 0."""
    return "index.html" if page == 0 else f"page-{page + 1}.html"


def _hex_colors(vocabulary: Vocabulary) -> list[str]:
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in vocabulary.colors]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tcl_core.preview"), autoescape=True, undefined=StrictUndefined, auto_reload=False
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["page_name"] = page_name
    environment.filters["percent"] = _percent
    return environment


def _percent(share: float) -> str:
    """A share in ``(0, 1]`` in whole percent, without claiming none or all of the image where that is not so."""
    rounded = round(100 * share)
    if rounded == 0:
        return "<1%"
    return ">99%" if rounded == 100 and share < 1 else f"{rounded}%"


def _near(page: int, pages: int) -> list[int | None]:
    """The pages that are linked to: the first, the last and those around ``page``; ``None`` stands for a gap."""
    near = sorted({0, pages - 1, *range(max(0, page - 3), min(pages, page + 4))})
    linked: list[int | None] = []
    for place, number in enumerate(near):
        if place and number - near[place - 1] > 1:
            linked.append(None)
        linked.append(number)
    return linked


@cache
def _asset(name: str) -> str:
    return (resources.files("tcl_core.preview") / "assets" / name).read_text(encoding="utf-8")
