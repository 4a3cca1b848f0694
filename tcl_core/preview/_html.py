"""The markup of one preview page; every text that comes from outside is escaped here."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from tcl_core.vocabulary import Vocabulary

__all__ = ["render_page"]


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
    """
    style = _asset("page.css") + "".join(
        f".l{k}{{--c:#{red:02x}{green:02x}{blue:02x}}}"
        for k, (red, green, blue) in enumerate(vocabulary.colors, start=1)
    )
    nav = _navigation(page, pages)
    done = sum(kinds.values())
    words = f"{len(vocabulary.labels)} labels" if len(vocabulary.labels) != 1 else "1 label"
    state = (
        f"{words}, {done:,} images"
        if done >= total
        else f'{words} <span class="warn">· unfinished: {done:,} of {total:,} images</span>'
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="tcl-annotate">
<title>{_text(title)}</title>
<style>{style}</style>
</head>
<body>
<header class="top">
<div><h1>{_text(title)}</h1><p class="sub">{state}</p></div>
{_figures(counts, kinds)}
</header>
<div class="bar">
<div class="legend" aria-label="Labels: click to hide or show, double-click for one alone">
{_legend(vocabulary, counts)}
</div>
<div class="tools">
<div class="seg" aria-label="Layers">
<button type="button" data-layer="masks" data-key="m" aria-pressed="true" title="Masks (M)">Masks</button>
<button type="button" data-layer="edges" data-key="o" aria-pressed="true" title="Outlines (O)">Outlines</button>
<button type="button" data-layer="original" data-key="h" aria-pressed="false" title="Original (H)">Original</button>
</div>
<label>Opacity <input type="range" id="opacity" min="5" max="90" value="42"></label>
<div class="seg" aria-label="Images">{_filters(kinds)}</div>
<input type="search" id="search" placeholder="Find on this page" aria-label="Find by file or label on this page">
</div>
</div>
{nav}
<main>
{chr(10).join(_card(card, vocabulary) for card in cards)}
</main>
{nav}
<footer>
<details open><summary>Settings</summary><dl class="settings">{_settings(settings)}</dl></details>
</footer>
<dialog id="view" aria-label="Image"><div id="held"></div>
<button type="button" class="step prev" aria-label="Previous image">‹</button>
<button type="button" class="step next" aria-label="Next image">›</button></dialog>
<div id="tip" hidden></div>
<script>{_asset("page.js")}</script>
</body>
</html>
"""


def _card(card: Mapping[str, Any], vocabulary: Vocabulary) -> str:
    name = f'<div class="name">{_text(card["name"])}</div>'
    if "failed" in card:
        why = f'<div class="why">{_text(card["failed"])}</div>'
        meta = '<div class="meta">skipped</div>'
        return f'<figure class="card failed" data-kind="failed">{why}<figcaption>{name}{meta}</figcaption></figure>'
    width, height = card["size"]
    shown_width, shown_height = card["shown"]
    regions = sum(card["counts"].values())
    tags = "".join(
        f'<span class="tag l{int(k)}"><i class="dot"></i>{_text(vocabulary.names[int(k) - 1])}'
        f"{f' × {number}' if number > 1 else ''}</span>"
        for k, number in card["counts"].items()
    )
    found = f'<div class="tags">{tags}</div>' if tags else '<div class="tags none">nothing found</div>'
    size = f"{width:,} × {height:,}"
    return (
        f'<figure class="card" data-kind="{_text(card["kind"])}">'
        f'<button type="button" class="shot{" tiny" if card["tiny"] else ""}" aria-label="Enlarge">'
        f'<img src="img/{_text(card["image"])}" width="{shown_width}" height="{shown_height}" loading="lazy" '
        f'alt="{_text(card["name"])}">'
        f'<svg viewBox="0 0 {shown_width} {shown_height}" preserveAspectRatio="none">{card["svg"]}</svg></button>'
        f'<figcaption>{name}<div class="meta">{size} · {regions} {"region" if regions == 1 else "regions"}</div>'
        f"{found}</figcaption></figure>"
    )


def _legend(vocabulary: Vocabulary, counts: Mapping[int, int]) -> str:
    return "".join(
        f'<button type="button" class="chip l{k}" data-label="{k}" aria-pressed="true" '
        f'title="{_text(label.name)}: {_text(", ".join(label.prompts))}">'
        f'<i class="dot"></i><span>{_text(label.name)}</span><b>{counts.get(k, 0):,}</b></button>'
        for k, label in enumerate(vocabulary.labels, start=1)
    )


def _figures(counts: Mapping[int, int], kinds: Mapping[str, int]) -> str:
    figures = {
        "regions": sum(counts.values()),
        "labeled": kinds.get("found", 0),
        "without regions": kinds.get("empty", 0),
        "skipped": kinds.get("failed", 0),
    }
    parts = "".join(f"<div><dt>{name}</dt><dd>{number:,}</dd></div>" for name, number in figures.items())
    return f'<dl class="figures">{parts}</dl>'


def _filters(kinds: Mapping[str, int]) -> str:
    choices = [("all", "All", 1), ("found", "Labeled", 1), ("empty", "Empty", kinds.get("empty", 0))]
    choices.append(("failed", "Skipped", kinds.get("failed", 0)))
    return "".join(
        f'<button type="button" data-show="{key}" aria-pressed="{"true" if key == "all" else "false"}">{name}</button>'
        for key, name, wanted in choices
        if wanted
    )


def _navigation(page: int, pages: int) -> str:
    if pages == 1:
        return ""
    near = sorted({0, pages - 1, *range(max(0, page - 3), min(pages, page + 4))})
    parts: list[str] = []
    for place, number in enumerate(near):
        if place and number - near[place - 1] > 1:
            parts.append("<i>…</i>")
        target = "index.html" if number == 0 else f"page-{number + 1}.html"
        parts.append(f"<b>{number + 1}</b>" if number == page else f'<a href="{target}">{number + 1}</a>')
    return f'<nav class="pages" aria-label="Pages">{"".join(parts)}</nav>'


def _settings(settings: Mapping[str, str]) -> str:
    return "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in settings.items())


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _asset(name: str) -> str:
    return (resources.files("tcl_core.preview") / "assets" / name).read_text(encoding="utf-8")
