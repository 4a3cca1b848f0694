"""References of a vocabulary's words as a small model file, and how sure they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcl_core.archive.base import Base
from tcl_core.archive.doubt import doubtful_words
from tcl_core.archive.store import ArchiveFolder
from tcl_core.devices import autocast
from tcl_core.errors import SettingsError, VocabularyError
from tcl_core.methods.reco import CONTEXTS, Fitting
from tcl_core.models.metadata import ModelMetadata
from tcl_core.models.modelfile import write_model_file
from tcl_core.vocabulary import Vocabulary
from tcl_core.vocabulary.templates import apply_templates, get_templates

__all__ = ["FoundReferences", "find_references", "read_struck", "write_references"]


@dataclass(frozen=True)
class FoundReferences:
    """References and what they were made with.

    Attributes:
        fitting: of all words, contexts first.
        doubtful: for words that the archive may not show, why.
        settings: as plain JSON values.
        templates: name of the template set.
    """

    fitting: Fitting
    doubtful: Mapping[str, str]
    settings: Mapping[str, Any]
    templates: str


def find_references(
    base: Base,
    archive: ArchiveFolder,
    vocabulary: Vocabulary,
    *,
    images: int | None = None,
    contexts: Sequence[str] = CONTEXTS,
    side: int | None = None,
    without: Mapping[str, Collection[str]] | None = None,
    upstream_slice: bool = False,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> FoundReferences:
    """Find a reference for every prompt of a vocabulary.

    Args:
        base: the CLIP that embedded the archive, and an image encoder beside it.
        archive: the images.
        vocabulary: whose prompts.
        images: retrieved for each prompt; by default a tenth of the archive, from 5 to 50.
        contexts: words whose pixels are left out; prompts and words that the CLIP does not know are no contexts.
        side: of the squares that are looked at, in pixels; by default the working length of segmentation.
        without: for each prompt, file names that are not used.
        upstream_slice: see `tcl_core.methods.reco.cosegmentation.pixel_scores`.
        on_progress: see `tcl_core.methods.reco.fitting.fit_references`.

    Raises:
        SettingsError: the archive was embedded by other weights, or holds nothing that can be used.
        VocabularyError: the CLIP does not know a word of a prompt.
    """
    if archive.about.sha256 != base.model.weights_sha256:
        raise SettingsError(
            f"{archive.folder}: was embedded by {archive.about.model} with SHA-256 {archive.about.sha256[:12]}..., but "
            f"{base.name} has {base.model.weights_sha256[:12]}...; build the archive again"
        )
    if not len(archive):
        raise SettingsError(f"{archive.folder}: holds no images; run 'tcl-annotate archive build' with images first")
    prompts = list(dict.fromkeys(prompt for _, prompt in vocabulary.prompts))
    templates = base.model.templates if vocabulary.templates is None else vocabulary.templates
    _check_words(base, prompts, templates)
    struck = _checked_struck(without or {}, prompts, contexts, archive)
    looked_at = base.fitted_side if side is None else base.in_patches(side)
    with autocast(base.model.device, base.model.precision):
        fitting = base.method.fit(
            archive.look_at(looked_at, base.model.preprocess),
            prompts,
            get_templates(templates),
            images=images,
            contexts=contexts,
            without=struck,
            upstream_slice=upstream_slice,
            on_progress=on_progress,
        )
    encoder = "the CLIP's own tokens" if base.encoder is None else base.encoder.timm
    settings = {
        "style": "ReCo-style",
        "correspondences": encoder,
        "archive_images": len(archive),
        "images_per_word": max(len(word.images) for word in fitting.words),
        "side": looked_at,
        "contexts": [word.name for word in fitting.words if word.context],
        "upstream_slice": upstream_slice,
        "struck_out": sum(map(len, struck.values())),
    }
    return FoundReferences(fitting, doubtful_words(base, archive, fitting, templates), settings, templates)


def write_references(path: Path, base: Base, found: FoundReferences) -> str:
    """Write a model file that borrows the CLIP of another model and holds the references alone.

    It tells no file names, so that it can be shared without the images.

    Args:
        path: file to write (``.safetensors``); an older one is replaced.
        base: the CLIP.
        found: the references.

    Returns:
        SHA-256 of the file in hexadecimal.

    Raises:
        WeightsError: the file cannot be written.
    """
    method = base.method.with_references(found.fitting)
    words = {
        word.name: {"images": len(word.images), "first": word.images[0].similarity, "last": word.last_similarity}
        for word in found.fitting.words
    }
    about = base.model.metadata
    metadata = ModelMetadata(
        name=path.stem,
        preprocess=base.model.preprocess,
        method=method.name,
        method_config=method.config_to_dict(),
        clip={"model": base.name, "sha256": base.model.weights_sha256},
        tokenizer=about.tokenizer,
        templates=found.templates,
        background_threshold={"pamr": 0.0, "plain": 0.0},
        image_encoder={} if base.encoder is None else base.encoder.entry(),
        background_names=list(base.model.background_names),
        license=about.license,
        source=f"ReCo-style references in {found.settings['archive_images']} images of the user's",
        extra={"references": dict(found.settings), "words": words},
    )
    return write_model_file(path, metadata, method.learned_state_dict())


def read_struck(path: Path) -> dict[str, list[str]]:
    """File names that are not to be used, by prompt, as the page of retrieved images saves them.

    Raises:
        SettingsError: the file cannot be read, or is another one.
    """
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"--without {path}: cannot be read as JSON ({error})") from error
    if not isinstance(entry, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in entry.values()
    ):
        raise SettingsError(
            f'--without {path}: must be of the form {{"prompt": ["image.jpg", ...]}}, as the page saves it'
        )
    return entry


def _checked_struck(
    without: Mapping[str, Collection[str]], prompts: Sequence[str], contexts: Sequence[str], archive: ArchiveFolder
) -> dict[str, frozenset[str]]:
    """Nothing that is struck out may be lost because of a wrong name."""
    for prompt, names in without.items():
        if prompt not in prompts and prompt not in contexts:
            raise SettingsError(f"--without: there is no prompt {prompt!r} among the labels; remove it from the file")
        unknown = next((name for name in names if name not in archive.entries), None)
        if unknown is not None:
            raise SettingsError(
                f"--without: the archive has no image {unknown!r} (of {prompt!r}); remove it from the file"
            )
    return {prompt: frozenset(names) for prompt, names in without.items()}


def _check_words(base: Base, prompts: Sequence[str], templates: str) -> None:
    for prompt in prompts:
        texts = (prompt, *apply_templates(prompt, templates))
        unknown = next((words for text in texts if (words := base.method.unknown_words(text))), None)
        if unknown:
            raise VocabularyError(
                f"prompt {prompt!r}: the CLIP of {base.name} does not know the word {unknown[0]!r}; use other words"
            )
