"""Writes the list of open_clip's configurations: ``python docs/build_clip_list.py docs/open-clip-models.md``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import open_clip

from tcl_core.towers.open_clip_catalog import architectures, refusal

__all__ = ["page", "rows"]

_HEAD = """# CLIPs that can be used

Every configuration of open_clip {version}, each judged by building it without memory. Those that are accepted run
under all [training-free methods](training-free.md), as `METHOD:CONFIGURATION/TAG` or `METHOD:CONFIGURATION=FILE`. This
page is made by `python docs/build_clip_list.py docs/open-clip-models.md`; a test compares it with the installed
open_clip.

Weights work only with the activation that they were trained with. QuickGELU weights on a configuration without
`-quickgelu`, or the reverse, are corrected, and a line says so. A file says nothing of its activation, so there the
configuration's name decides.

| configuration | {count} of {total} accepted | patch | trained size | tokenizer | tags |
|---|---|---|---|---|---|
"""


def rows(names: Sequence[str]) -> dict[str, str]:
    """A line of the table for each configuration."""
    found = {}
    for name in names:
        config = open_clip.get_model_config(name) or {}
        vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
        reason = refusal(name)
        if reason is None:
            tags = len(open_clip.list_pretrained_tags_by_model(name))
            tokenizer = text.get("hf_tokenizer_name") or "CLIP's"
            parts = ["yes", str(vision["patch_size"]), str(vision["image_size"]), tokenizer, str(tags)]
        else:
            parts = [f"no: {reason}", "", "", "", ""]
        found[name] = f"| {name} | " + " | ".join(parts) + " |"
    return found


def page() -> str:
    """The whole page."""
    lines = rows(architectures())
    count = sum("| yes |" in line for line in lines.values())
    head = _HEAD.format(version=open_clip.__version__, count=count, total=len(lines))
    # Those that can be used come first.
    ordered = sorted(lines.values(), key=lambda line: "| no: " in line)
    return head + "\n".join(ordered) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/build_clip_list.py FILE")
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
