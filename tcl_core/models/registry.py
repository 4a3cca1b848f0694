"""The models that can be used by name: the package's own, fetched ones and imported ones."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tcl_core
from tcl_core.errors import WeightsError
from tcl_core.methods import list_methods, method_class, refuse_without_weights, runs_on_a_clip
from tcl_core.models.checkpoints import import_checkpoint
from tcl_core.models.clips import ClipName, clip_name, find_clip
from tcl_core.models.download import check_file, fetch_file
from tcl_core.models.manifest import ModelEntry, Suggestion, load_manifest
from tcl_core.models.modelfile import read_metadata, read_model_file
from tcl_core.models.paths import download_folder, models_folder
from tcl_core.models.towers import referenced_file
from tcl_core.models.transfer_progress import TransferProgress

__all__ = [
    "ModelRow",
    "check_options",
    "fetch_model",
    "find_model",
    "list_models",
    "named_clip",
    "split_method",
    "verify_model",
    "weights_file",
]

_CHECKPOINT_SUFFIXES = {".pth", ".pt", ".ckpt", ".bin"}


@dataclass(frozen=True)
class ModelRow:
    """One entry of the list of models.

    Attributes:
        name: the name to load the model by.
        description: one line.
        installed: whether the model can be loaded without a download.
        size: size in bytes of the files on disk, or of the downloads; ``None`` if unknown.
        license: SPDX identifier or a short sentence.
        source: where the weights come from.
        path: the model file; it need not exist if ``installed`` is false.
    """

    name: str
    description: str
    installed: bool
    size: int | None
    license: str
    source: str
    path: Path


def list_models() -> list[ModelRow]:
    """The available models: released models, CLIPs with a training-free method (suggested or fetched), and imports."""
    entries = load_manifest().models
    folder = models_folder()
    imported = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return [
        *(_known_row(entry) for entry in entries.values()),
        *(_suggested_row(entry) for entry in load_manifest().suggested),
        *_fetched_rows(),
        *(_imported_row(path) for path in imported if path.stem not in entries),
    ]


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """The model file of a name, or of a path.

    A name of the manifest comes first, then an imported model, then a file; write ``./name`` for a file that is called
    like a model.

    Raises:
        WeightsError: there is no such model or file, it is not fetched yet, or it is a checkpoint that has to be
            imported first; the message says what to do.
    """
    text = os.fspath(name_or_path)
    entry = load_manifest().models.get(text)
    if entry is not None:
        path = _entry_path(entry)
        if not path.is_file():
            raise WeightsError(_not_installed(entry, path))
        return path
    imported = models_folder() / f"{text}.safetensors"
    if Path(text).name == text and imported.is_file():
        return imported
    if clip_name(text) is not None:
        raise WeightsError(
            f"{text}: is a CLIP, which needs a method; write it with one, such as {_usual_method()}:{text}"
        )
    path = Path(text)
    if path.suffix.lower() in _CHECKPOINT_SUFFIXES:
        raise WeightsError(
            f"{path}: a PyTorch checkpoint is not loaded directly; run 'tcl-annotate models import {path}' once and "
            "use the model file that it creates"
        )
    if not path.is_file():
        names = ", ".join(row.name for row in list_models())
        raise WeightsError(f"there is no model and no file called {text!r}{_hint(text)}; the models are: {names}")
    return path


def _usual_method() -> str:
    """The method of the first suggestion, for lines that need to name one."""
    return str(split_method(load_manifest().suggested[0].name)[0])


def _hint(text: str) -> str:
    """What may have been meant by a name that looks like a method's or a CLIP's; empty for others."""
    method, colon, _ = text.partition(":")
    if text in list_methods() and not runs_on_a_clip(method_class(text)):
        return f"; {text!r} is a method with weights of its own; give the name or the file of a model of it"
    if text in list_methods():
        return f"; it is a method, which runs on a model or CLIP, such as {text}:ViT-B-16-quickgelu/openai"
    if colon and not method[:1].isupper() and method.replace("-", "").isalnum():
        return f"; {method!r} is not a method; the methods are {', '.join(list_methods())}"
    if not text.lower().startswith(("vit", "rn", "clip", "openai")):
        return ""
    from tcl_core.towers.open_clip_catalog import architectures

    if text in architectures():
        return f"; {text} is an open_clip configuration; use {text}/TAG with the tag of its weights, or {text}=FILE"
    near = difflib.get_close_matches(text.partition("=")[0].replace("/", "-"), architectures(), n=2, cutoff=0.5)
    return f"; open_clip names look like ViT-B-16/openai; did you mean {' or '.join(near)}?" if near else ""


def split_method(name_or_path: str | os.PathLike[str]) -> tuple[str | None, str]:
    """``METHOD:MODEL`` taken apart; the method is ``None`` where none is named.

    A colon after anything but the name of a method belongs to the model's name or path.

    >>> split_method("tcl:playground"), split_method("C:/model.safetensors")
    (('tcl', 'playground'), (None, 'C:/model.safetensors'))
    """
    text = os.fspath(name_or_path)
    method, colon, model = text.partition(":")
    return (method, model) if colon and model and method in list_methods() else (None, text)


def named_clip(name_or_path: str | os.PathLike[str]) -> ClipName | None:
    """The CLIP of open_clip that a name ends with; ``None`` if it ends with a model or a file.

    >>> named_clip("naclip:ViT-B-16-quickgelu/openai").tag, named_clip("naclip:playground")
    ('openai', None)
    """
    text = split_method(name_or_path)[1]
    known = (
        text in load_manifest().models or (models_folder() / f"{text}.safetensors").is_file() or Path(text).is_file()
    )
    return None if known else clip_name(text)


def weights_file(name_or_path: str | os.PathLike[str]) -> Path:
    """The file that holds a model's weights, its CLIP's if it has none of its own; a CLIP is downloaded if need be.

    Raises:
        WeightsError: there is no such model or file, or it cannot be had.
        SettingsError: the method needs more than a CLIP.
    """
    clip = named_clip(name_or_path)
    return find_model(split_method(name_or_path)[1]) if clip is None else _clip_path(name_or_path, clip)


def _clip_path(name_or_path: str | os.PathLike[str], clip: ClipName, progress: TransferProgress = True) -> Path:
    """Download a CLIP for a method that runs on it; without a method, for itself."""
    method = split_method(name_or_path)[0]
    if method is not None:
        refuse_without_weights(method)
    return find_clip(clip, progress=progress).path


def check_options(name_or_path: str | os.PathLike[str], options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Check a method's options without loading the model.

    Returns:
        The method's name, and the values that were given as the method reads them.

    Raises:
        WeightsError: there is no such model.
        SettingsError: an option is unknown or out of range.
    """
    method, model = split_method(name_or_path)
    name = read_metadata(find_model(model)).method if method is None else method
    read = method_class(name).options_class().changed(options).model_dump(mode="json")
    return name, {key: read[key] for key in options}


def fetch_model(name: str, progress: TransferProgress = True) -> Path:
    """Download and prepare a model; existing files are not downloaded again.

    Args:
        name: name of a released model, of one of its files (such as the CLIP that an imported model needs), or of an
            open_clip CLIP, with or without a method.
        progress: see `tcl_core.models.transfer_progress.TransferProgress`.

    Returns:
        Path of the model file, or of the downloaded file.

    Raises:
        WeightsError: the name is unknown, or a file cannot be downloaded, verified or written.
        SettingsError: the method needs more than a CLIP.
    """
    manifest = load_manifest()
    clip = named_clip(name)
    if clip is not None:
        return _clip_path(name, clip, progress)
    if name in manifest.files:
        return fetch_file(manifest.files[name], progress=progress)
    if name not in manifest.models:
        known = ", ".join([*manifest.models, *manifest.files])
        raise WeightsError(f"there is no model {name!r} to fetch; the models are: {known}")
    entry = manifest.models[name]
    path = _entry_path(entry)
    if entry.asset is not None or entry.by_hand is not None:
        return find_model(name)
    paths = {file.name: fetch_file(file, progress=progress) for file in entry.files}
    hashes = {file.name: check_file(file) for file in entry.files}
    if entry.checkpoint is None:
        raise WeightsError(f"the model {name!r} needs no download")
    if not (path.is_file() and _made_from(path, entry, hashes)):
        import_checkpoint(
            paths[entry.checkpoint.name],
            name=name,
            out=path,
            with_clip=False,
            clip_sha256=hashes[entry.clip.name] if entry.clip else None,
            method=entry.method,
            license=entry.license,
            origin=entry.checkpoint.url,
        )
    return path


def verify_model(name_or_path: str | os.PathLike[str]) -> str:
    """Read a model file and check its downloads.

    Returns:
        SHA-256 of the model file in hexadecimal.

    Raises:
        WeightsError: something is missing, damaged or not as it was first downloaded.
    """
    clip = named_clip(name_or_path)
    if clip is not None:
        return find_clip(clip, fetch=False).sha256
    path = find_model(name_or_path)
    entry = load_manifest().models.get(os.fspath(name_or_path))
    for file in entry.files if entry else ():
        check_file(file)
    return read_model_file(path).sha256


def _made_from(path: Path, entry: ModelEntry, hashes: dict[str, str]) -> bool:
    try:
        metadata = read_metadata(path)
    except WeightsError:
        return False
    same_clip = entry.clip is None or metadata.clip.get("sha256") == hashes[entry.clip.name]
    return (
        same_clip
        and entry.checkpoint is not None
        and (metadata.extra.get("imported_sha256") == hashes[entry.checkpoint.name])
    )


def _entry_path(entry: ModelEntry) -> Path:
    if entry.asset is not None:
        return Path(tcl_core.__file__).parent / entry.asset
    return models_folder() / f"{entry.name}.safetensors"


def _known_row(entry: ModelEntry) -> ModelRow:
    path = _entry_path(entry)
    if entry.by_hand is not None and path.is_file():
        row = _imported_row(path)
        return replace(row, license=row.license or entry.license, source=entry.source)
    local = [path, *(download_folder() / file.filename for file in entry.files)]
    # A checkpoint is not needed any more once it is imported.
    installed = path.is_file() and (entry.clip is None or (download_folder() / entry.clip.filename).is_file())
    if installed:
        size: int | None = sum(item.stat().st_size for item in local if item.is_file())
    else:
        sizes = [file.size for file in entry.files]
        size = sum(value for value in sizes if value) if sizes and None not in sizes else None
    return ModelRow(entry.name, entry.description, installed, size, entry.license, entry.source, path)


def _suggested_row(entry: Suggestion) -> ModelRow:
    """Looks at the folder alone: asking open_clip for the file's name would take seconds."""
    folder, page = download_folder(), entry.source.partition("://")[2].partition("/")[2].replace("/", "--")
    files = [folder / file.filename for file in load_manifest().files.values() if file.source == entry.source]
    files += [path for suffix in ("safetensors", "bin") for path in sorted(folder.glob(f"{page}--*.{suffix}"))]
    path = next((path for path in files if path.is_file()), None)
    size = None if path is None else path.stat().st_size
    return ModelRow(entry.name, entry.description, path is not None, size, entry.license, entry.source, path or folder)


def _fetched_rows() -> list[ModelRow]:
    """CLIPs that somebody fetched although nobody suggested them."""
    folder, listed = download_folder(), {split_method(entry.name)[1] for entry in load_manifest().suggested}
    method, rows = _usual_method(), []
    for pin in sorted(folder.glob("*.pin.json")) if folder.is_dir() else []:
        path = pin.with_name(pin.name.removesuffix(".pin.json"))
        try:
            about = json.loads(pin.read_text(encoding="utf-8"))
            name, page = str(about["name"]), str(about["url"]).partition("/resolve/")[0]
        except (OSError, ValueError, KeyError, TypeError):
            # Whoever uses the file is told what is wrong with its pin.
            continue
        if "/" in name and " " not in name and name not in listed and path.is_file():
            description = f"a CLIP of open_clip under {method}; other methods run on it too"
            rows.append(ModelRow(f"{method}:{name}", description, True, path.stat().st_size, "", page, path))
    return rows


def _imported_row(path: Path) -> ModelRow:
    size = path.stat().st_size
    try:
        metadata = read_metadata(path)
        clip = None
        if "open_clip" in metadata.clip:
            clip = referenced_file(metadata.clip["open_clip"], metadata.clip["pretrained"])
    except WeightsError as error:
        return ModelRow(path.stem, f"cannot be used: {error}", False, size, "", "", path)
    if not metadata.clip and _needs_clip(metadata.method):
        installed, description = (
            False,
            "imported without its CLIP, cannot be used; import it again together with its CLIP",
        )
    elif clip is not None and not (download_folder() / clip.filename).is_file():
        installed, description = False, f"imported; its CLIP is missing, run 'tcl-annotate models fetch {clip.name}'"
    else:
        installed, description = True, "imported"
    return ModelRow(path.stem, description, installed, size, metadata.license, metadata.source, path)


def _needs_clip(method: str) -> bool:
    """Whether a method runs on a CLIP; one that is not installed is taken for such."""
    return method not in list_methods() or bool(method_class(method).tower_names)


def _not_installed(entry: ModelEntry, path: Path) -> str:
    if entry.asset is not None:
        return (
            f"the embedded model {entry.name!r} is not part of this installation ({path} is missing); reinstall "
            "tcl-annotate from a built wheel, or make the file with the training recipe"
        )
    if entry.by_hand is not None:
        return (
            f"the model {entry.name!r} cannot be fetched; get {entry.by_hand}, from {entry.source}, and run "
            f"'tcl-annotate models import checkpoint.pth --name {entry.name}' once"
        )
    files = "; ".join(f"{file.filename} from {file.url}" for file in entry.files)
    return (
        f"the model {entry.name!r} has not been fetched yet; run 'tcl-annotate models fetch {entry.name}' (on a "
        f"machine without network access, first save these files in the folder {download_folder()}: {files})"
    )
