"""Prompts as a model's embeddings: checked, post-processed, and computed once."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tcl_core.caching import ByteBoundedCache
from tcl_core.devices import autocast, precision_name, unquantized
from tcl_core.errors import VocabularyError
from tcl_core.methods.base import Method, PromptEmbeddings
from tcl_core.segmentation.model import SegmentationModel
from tcl_core.segmentation.text_store import TextStore, write_embeddings
from tcl_core.vocabulary.templates import apply_templates, get_templates

__all__ = ["Texts"]

_CACHE_BYTES = 64 << 20

_FEWEST_KEPT = 64
"""Lists of fewer names are embedded anew by every process."""

_VERSION = 2
"""To be raised where the same prompt would be embedded otherwise."""

_PART = 8
"""Names embedded between two reports of progress."""


class Texts:
    """The text side of a model, with a cache. Safe to use from several threads.

    Args:
        model: with its own templates, text post-processing, and a folder for lists of names.
        method: embeds prompts.
    """

    def __init__(self, model: SegmentationModel, method: Method) -> None:
        self._model = model
        self._method = method
        self._stores: dict[str, TextStore] = {}
        self._cache = ByteBoundedCache[tuple[str, str], PromptEmbeddings](_CACHE_BYTES, lambda text: text.nbytes)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str], templates: str) -> PromptEmbeddings:
        """Embed prompts in a template set; each prompt is computed once per template set.

        Args:
            prompts: P texts.
            templates: name of the template set.

        Returns:
            P entries of the method's kind.

        Raises:
            VocabularyError: the set is unknown, or the model does not know a word of a prompt or of the templates.
        """
        return self._embed(prompts, templates, stored=True)

    def _embed(self, prompts: Sequence[str], templates: str, *, stored: bool) -> PromptEmbeddings:
        if not prompts:
            return self._method.embed_prompts([], get_templates(templates))
        found = {prompt: self._cache.get((prompt, templates)) for prompt in dict.fromkeys(prompts)}
        missing = [prompt for prompt, embedding in found.items() if embedding is None]
        if missing:
            self._check(missing, templates)
        store = self._store(templates) if missing and stored else None
        if store is not None:
            for prompt in missing:
                kept = store.get(prompt)
                if kept is not None:
                    found[prompt] = kept = kept.to(self._model.device)
                    self._cache.put((prompt, templates), kept)
            missing = [prompt for prompt in missing if found[prompt] is None]
        if missing:
            embedded = self._compute(missing, templates)
            for place, prompt in enumerate(missing):
                # Joined, because a slice of the batch would keep all of it.
                entry = type(embedded).join([embedded[place : place + 1]])
                found[prompt] = entry
                self._cache.put((prompt, templates), entry)
                if store is not None:
                    store.put(prompt, entry)
        entries = [entry for entry in (found[prompt] for prompt in prompts) if entry is not None]
        return type(entries[0]).join(entries)

    def has(self, prompts: Sequence[str], templates: str) -> bool:
        """Whether all of these prompts are in memory."""
        return all((prompt, templates) in self._cache for prompt in prompts)

    @torch.no_grad()
    def embed_list(
        self, names: Sequence[str], templates: str, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Embed a long list that is the same in every run; it is kept on disk where the model has a folder for that.

        Args:
            names: different texts, known to the model.
            templates: name of the template set.
            on_progress: called with the number of names done and of all; what it raises ends the work and is passed on.
        """
        if self.has(names, templates):
            return
        path = self._path(names, templates)
        if path is not None and self._read(path, names, templates):
            return
        for first in range(0, len(names), _PART):
            if on_progress is not None:
                on_progress(first, len(names))
            self._embed(names[first : first + _PART], templates, stored=False)
        if path is not None:
            self._write(path, self.embed(names, templates))

    def _check(self, prompts: list[str], templates: str) -> None:
        self._model.check_prompts(prompts)
        for prompt in prompts:
            # Templates can bring their own words, or make a new one of the prompt ("{}s").
            filled = apply_templates(prompt, templates)
            self._check_templates(prompt, filled, templates)
            for text in filled:
                self._model.check_length(prompt, text)

    def _compute(self, prompts: list[str], templates: str) -> PromptEmbeddings:
        with autocast(self._model.device, self._model.precision):
            embedded = self._method.embed_prompts(prompts, get_templates(templates))
        debiasing = self._model.debiasing
        if debiasing is None:
            return embedded
        return replace(embedded, **{debiasing.text_set: debiasing(prompts, embedded.tensors()[debiasing.text_set])})

    def _check_templates(self, prompt: str, filled: list[str], templates: str) -> None:
        unknown = self._method.unknown_words
        if words := list(dict.fromkeys(word for text in filled for word in unknown(text))):
            listed = ("the word " if len(words) == 1 else "the words ") + ", ".join(repr(word) for word in words)
            own = self._model.templates
            remedy = f"its own templates, {own!r}, or another model" if templates != own else "another prompt or model"
            raise VocabularyError(
                f"templates {templates!r} around the prompt {prompt!r}: the model {self._model.name} does not know "
                f"{listed}; use {remedy}"
            )

    # -- on disk -------------------------------------------------------------------------------------------------

    def _identity(self, templates: str) -> dict[str, Any]:
        """What embeddings depend on beside their prompts."""
        return {
            "version": _VERSION,
            # Its name holds the configuration under which a CLIP's file is used.
            "model": self._model.name,
            "weights": self._model.weights_sha256,
            "method": self._method.name,
            "templates": list(get_templates(templates)),
            "debiased": self._model.debiasing is not None,
            "precision": precision_name(unquantized(self._model.precision)),
            "device": self._model.device.type,
        }

    def _store(self, templates: str) -> TextStore | None:
        """Where single prompts are kept; closed lists of words come with towers that are faster than a disk."""
        folder = self._model.text_folder
        if folder is None or self._method.known_words() is not None:
            return None
        if templates not in self._stores:
            kind = type(self._method.embed_prompts([], get_templates(templates)))
            self._stores[templates] = TextStore(folder, self._identity(templates), kind)
        return self._stores[templates]

    def _path(self, names: Sequence[str], templates: str) -> Path | None:
        folder = self._model.text_folder
        if folder is None or len(names) < _FEWEST_KEPT:
            return None
        identity = {**self._identity(templates), "names": list(names)}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return folder / f"{digest}.safetensors"

    def _read(self, path: Path, names: Sequence[str], templates: str) -> bool:
        kind = type(self._method.embed_prompts([], get_templates(templates)))
        try:
            embedded = kind.from_tensors(load_file(path))
        except (OSError, SafetensorError, ValueError):
            return False
        finite = all(bool(tensor.isfinite().all()) for tensor in embedded.tensors().values())
        if len(embedded) != len(names) or not finite:
            return False
        embedded = embedded.to(self._model.device)
        for place, name in enumerate(names):
            self._cache.put((name, templates), kind.join([embedded[place : place + 1]]))
        return True

    def _write(self, path: Path, embedded: PromptEmbeddings) -> None:
        try:
            write_embeddings(path, embedded)
        except OSError as error:
            warnings.warn(
                f"{path}: the embedded background names cannot be cached ({error.strerror}), so the next run embeds "
                "them again",
                stacklevel=2,
            )
