"""Writes the API reference of every public module: ``python docs/build_reference.py FOLDER [--no-source]``."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import tcl_core

__all__ = ["build", "public_modules"]


def public_modules() -> list[str]:
    """Names of the package's modules, without those that begin with an underscore; a package comes before its parts."""
    names = [module.name for module in pkgutil.walk_packages(tcl_core.__path__, "tcl_core.")]
    return ["tcl_core", *(name for name in names if not any(part.startswith("_") for part in name.split(".")))]


def build(folder: Path, *, source: bool = True) -> None:
    """Write the pages into ``folder``, which is made if need be; ``index.html`` is where to begin.

    Args:
        folder: of the pages.
        source: show the source code too, which takes half of the time.
    """
    private = r"!tcl_core\.(.*\.)?_"
    # By itself pdoc leaves out the modules of a package that has an ``__all__``, and complains of a module named twice.
    named: list[str] = []
    found: set[str] = set()
    # pydantic annotates the dataclasses that it makes with a name that it only knows while types are checked.
    warnings.filterwarnings("ignore", message=".*PydanticDataclass", category=UserWarning)
    for name in public_modules():
        module = importlib.import_module(name)
        for lazy in getattr(module, "__all__", ()):
            # pdoc looks into the module's dictionary, in which lazy names appear once they are asked for.
            getattr(module, lazy)
        if name not in found:
            named.append(name)
            found |= set(pdoc.extract.walk_specs([name, private]))
    pdoc.render.configure(docformat="google", show_source=source)
    pdoc.pdoc(*named, private, output_directory=folder)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--no-source"]
    if len(words) != 1 or words[0].startswith("-"):
        sys.exit("usage: python docs/build_reference.py FOLDER [--no-source]")
    build(Path(words[0]), source=words == sys.argv[1:])
