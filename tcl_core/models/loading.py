"""Loading a model by name: everything that turns images and prompts into score maps."""

from __future__ import annotations

import copy
import itertools
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from tcl_core.backends import Backend, make_backend, select_backend
from tcl_core.backends.base import TorchBackend, check_precision
from tcl_core.devices import has_fast_bfloat16, select_device, select_precision
from tcl_core.errors import SettingsError, VocabularyError, WeightsError
from tcl_core.methods import (
    Method,
    MethodOptions,
    create_method,
    list_methods,
    method_class,
    needs_weights,
    refuse_without_weights,
)
from tcl_core.models.clips import ClipName, FoundClip, check_clip, clip_preprocess, clip_tokenizer_file, find_clip
from tcl_core.models.image_encoders import load_image_encoder
from tcl_core.models.metadata import ModelMetadata, Preprocess
from tcl_core.models.modelfile import ModelFile, read_model_file
from tcl_core.models.paths import networks_folder, texts_folder
from tcl_core.models.registry import ModelRow, fetch_model, find_model, list_models, named_clip, split_method
from tcl_core.models.towers import build_clip, load_clip_file, load_referenced_clip
from tcl_core.segmentation.text_debiasing import PromptDebiasing
from tcl_core.towers.base import Tower
from tcl_core.towers.hub_tokenizer import HubTokenizer
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import OpenClipTokenizer, Tokenizer, tokenizer_from_dict

__all__ = [
    "Model",
    "clip_tokenizer",
    "ModelRow",
    "Preprocess",
    "fetch_model",
    "list_models",
    "load_model",
    "model_from_file",
]

_log = logging.getLogger(__name__)
_SHOWN = 60  # characters of a long prompt


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model: a method with its towers, and how it is used.

    Attributes:
        name: how it is called in lists and in COCO's ``info``.
        method: the method with its learned weights, on ``device``, in eval mode.
        preprocess: from images to input.
        templates: name of the prompt template set that is used where a vocabulary names none.
        background_threshold: default background score by the refiner's name, ``"plain"`` for none; those of the
            method where empty.
        weights_sha256: of the model file, in hexadecimal.
        device: where it runs.
        precision: number format of the matrix products.
        metadata: everything that the model file says about itself.
        debiasing: what is taken out of prompts that do not name it; ``None`` for nothing.
        background_names: everything that the model's world holds, where that is a closed one.
        text_folder: where embedded names are kept between runs; ``None`` for nowhere.
        backend: what runs the method's network.
    """

    name: str
    method: Method
    preprocess: Preprocess
    templates: str
    background_threshold: Mapping[str, float]
    weights_sha256: str
    device: torch.device
    precision: torch.dtype
    metadata: ModelMetadata
    debiasing: PromptDebiasing | None = None
    background_names: tuple[str, ...] = ()
    text_folder: Path | None = None
    backend: Backend = field(default_factory=TorchBackend)

    def check_prompts(self, prompts: Iterable[str]) -> None:
        """Refuse prompts that the model would not read as they are, because their scores would mean nothing.

        Raises:
            VocabularyError: a prompt has a word that the model never learned, is longer than its text tower reads, or
                the method cannot answer it; the message names prompt, words and model.
        """
        for prompt in prompts:
            unknown = self.method.unknown_words(prompt)
            if unknown:
                words = ("the word " if len(unknown) == 1 else "the words ") + ", ".join(map(repr, unknown))
                raise VocabularyError(
                    f"prompt {prompt!r}: the model {self.name!r} does not know {words}; use"
                    " other words, or a model with an open vocabulary such as tcl-vit-b16"
                )
            if (reason := self.method.refusal(prompt)) is not None:
                raise VocabularyError(f"prompt {prompt!r}: the model {self.name!r} {reason}")
            self.check_length(prompt, prompt, self.method.reserved_tokens)

    def check_length(self, prompt: str, text: str, reserved: int = 0) -> None:
        """Refuse a text whose end the model would not read.

        Args:
            prompt: what is named in the message.
            text: the prompt, alone or in a template.
            reserved: positions of the text tower that something else takes.

        Raises:
            VocabularyError: the text is too long.
        """
        cut = self.method.cut_tokens(text, reserved)
        if cut:
            shown = repr(prompt if len(prompt) <= _SHOWN else f"{prompt[: _SHOWN - 3].rstrip()}...")
            where = "" if text == prompt else ", within its template,"
            raise VocabularyError(
                f"prompt {shown}: is too long{where} by {cut} token{'s' * (cut > 1)} (words or pieces of words) for "
                f"the model {self.name!r}, which would not read its end; use a shorter prompt"
            )


def load_model(
    name_or_path: str | os.PathLike[str], device: str = "auto", precision: str = "auto", backend: str = "auto"
) -> Model:
    """Load a model.

    Args:
        name_or_path: a name listed by :func:`list_models`, or the path of a model file (``.safetensors``).
            ``METHOD:MODEL`` runs a training-free method on the CLIP of that model, ``METHOD:CONFIGURATION/TAG`` on a
            pretrained CLIP of open_clip, which is downloaded on first use, and ``METHOD:CONFIGURATION=FILE`` on your
            own weights.
        device: see :func:`tcl_core.devices.select_device`.
        precision: see :func:`tcl_core.devices.select_precision`.
        backend: see :func:`tcl_core.backends.select_backend`; a method without a network of its own runs in PyTorch.

    Raises:
        WeightsError: there is no such model, it has not been fetched, or its file is damaged or incompatible.
        SettingsError: the device, precision or backend is not available, or the method cannot run on this model.
            Whether int8 was measured is found out by the `tcl_core.segmentation.segmenter.Segmenter`, which knows the
            method's options.
    """
    # First what costs nothing: a wrong device should not be found out after reading a large file.
    chosen = select_device(device)
    runs = select_backend(backend, chosen)
    number_format = select_precision(precision, chosen)
    check_precision(runs, number_format)
    if runs == "openvino" and precision == "auto" and has_fast_bfloat16():
        number_format = torch.bfloat16
    method, model = split_method(name_or_path)
    clip = named_clip(name_or_path)
    if method is not None and clip is not None:
        loaded = _model_from_clip(method, clip, chosen, number_format)
    else:
        loaded = model_from_file(read_model_file(find_model(model)), chosen, number_format, method)
    chosen_backend = make_backend(runs, networks_folder()).for_method(loaded.method)
    if number_format == torch.int8 and chosen_backend.name != "openvino":
        raise SettingsError(
            f"precision int8 is OpenVINO's alone, and the method {loaded.method.name!r} has no network that it can "
            "run; use another precision."
        )
    return replace(loaded, backend=chosen_backend)


def options_of(name: str) -> tuple[str, MethodOptions]:
    """The options of a model's method with the values in force; a CLIP is not downloaded for that.

    Args:
        name: of a model, see `load_model`, or of a method.

    Returns:
        The method's name, and its options.

    Raises:
        WeightsError: there is no such model.
    """
    clip = named_clip(name)
    method = name if name in list_methods() else None
    if clip is not None:
        check_clip(clip)
        method = method or split_method(name)[0]
    if method is not None:
        return method, method_class(method).options_class()
    model = load_model(name, device="cpu")
    return model.method.name, model.method.options


def model_from_file(file: ModelFile, device: torch.device, precision: torch.dtype, method: str | None = None) -> Model:
    """Build a model from a file in memory.

    Args:
        file: see :func:`tcl_core.models.modelfile.read_model_file`.
        device: where it will run.
        precision: number format of the matrix products; the weights stay float32.
        method: name of a method without learned tensors that takes the place of the file's.

    Raises:
        WeightsError: its CLIP is missing, or its tensors do not fit its description.
        SettingsError: the method needs learned tensors that the file does not have.
    """
    metadata = file.metadata
    own = method is None or method == metadata.method
    try:
        kind = method_class(metadata.method if method is None else method)
        towers: dict[str, Any] = {"clip": _tower(file)} if kind.tower_names else {}
        if own and metadata.image_encoder and "image" in kind.optional_tower_names:
            towers["image"] = load_image_encoder(metadata.image_encoder, metadata.preprocess, str(file.path))
        built = _light_method(kind.name, towers, file) if own and file.learned else None
        if built is None:
            built = create_method(kind.name, towers, metadata.method_config if own else None)
            if own:
                built.load_learned_state_dict(file.learned)
        if not own and built.learned_state_dict():
            raise needs_weights(kind, f"but those of {metadata.name!r} belong to the method {metadata.method!r}")
        debiasing = None
        if own and metadata.debiasing and file.debiasing_axes is not None:
            text_set = str(metadata.debiasing["text_set"])
            embed_dim = towers["clip"].embed_dim
            words = metadata.debiasing["words"]
            # Made on the CPU, so that the axes are the same on every device, and none loads a library for them.
            debiasing = PromptDebiasing.from_file(words, file.debiasing_axes, embed_dim, text_set)
            debiasing = replace(debiasing, axes=debiasing.axes.to(device))
    except WeightsError as error:
        raise WeightsError(
            str(error) if str(error).startswith(f"{file.path}: ") else f"{file.path}: {error}"
        ) from error
    except SettingsError as error:
        if not own:
            raise
        raise WeightsError(f"{file.path}: {error}") from error
    if kind.notice:
        _log.warning("%s: %s", metadata.name, kind.notice)
    return Model(
        name=metadata.name if own else f"{kind.name}:{metadata.name}",
        method=built.eval().requires_grad_(False).to(device),
        preprocess=metadata.preprocess,
        templates=metadata.templates,
        background_threshold=dict(metadata.background_threshold) if own else {},
        weights_sha256=file.sha256,
        device=device,
        precision=precision,
        metadata=metadata,
        debiasing=debiasing,
        # The words that the towers know are the same whichever method runs on them.
        background_names=tuple(metadata.background_names),
        text_folder=texts_folder(),
    )


def _light_method(name: str, towers: Mapping[str, Tower], file: ModelFile) -> Method | None:
    """The method of a model file with the file's tensors as its parameters, without memory for those it starts with.

    It is built on towers without numbers. A method that looks at its towers' numbers cannot be built so: ``None``.
    """
    hollow = {
        key: copy.deepcopy(tower, _on_meta(tower)) for key, tower in towers.items() if isinstance(tower, nn.Module)
    }
    try:
        built = create_method(name, cast(Mapping[str, Tower], hollow), file.metadata.method_config)
    except (NotImplementedError, RuntimeError):
        return None
    built.load_learned_state_dict(file.learned, assign=True)
    for key, tower in towers.items():
        setattr(built, key, tower)
    held = itertools.chain(built.parameters(), built.buffers())
    return None if any(tensor.is_meta for tensor in held) else built


def _on_meta(module: nn.Module) -> dict[int, Any]:
    """What `copy.deepcopy` is to put in the place of a module's tensors."""
    parameters = {id(x): nn.Parameter(x.to("meta"), requires_grad=x.requires_grad) for x in module.parameters()}
    return {**{id(x): x.to("meta") for x in module.buffers()}, **parameters}


def _model_from_clip(method: str, name: ClipName, device: torch.device, precision: torch.dtype) -> Model:
    """A method that learns nothing on a CLIP of open_clip."""
    refuse_without_weights(method)
    found = find_clip(name)
    tower = load_clip_file(found.config, found.path)
    tower.tokenizer = clip_tokenizer(found)
    built = create_method(method, {"clip": tower})
    if built.learned_state_dict():
        raise needs_weights(type(built), "which a CLIP does not have")
    preprocess, full_name = clip_preprocess(found), f"{method}:{name}"
    reference = {"open_clip": name.architecture, "pretrained": name.tag or found.path.name, "sha256": found.sha256}
    return Model(
        name=full_name,
        method=built.eval().requires_grad_(False).to(device),
        preprocess=preprocess,
        templates="full",
        background_threshold={},
        weights_sha256=found.sha256,
        device=device,
        precision=precision,
        metadata=ModelMetadata(name=full_name, preprocess=preprocess, method=method, clip=reference, templates="full"),
        text_folder=texts_folder(),
    )


def clip_tokenizer(found: FoundClip) -> Tokenizer:
    """The tokenizer that open_clip's configuration asks for."""
    text = found.config["text_cfg"]
    length = int(text.get("context_length", 77))
    repository = text.get("hf_tokenizer_name")
    if not repository:
        return OpenClipTokenizer(length)
    return HubTokenizer(clip_tokenizer_file(repository), length, **(text.get("tokenizer_kwargs") or {}))


def _tower(file: ModelFile) -> FrozenClip:
    """The frozen CLIP of a model file: inside it, downloaded, or that of another model."""
    clip = file.metadata.clip
    if "model" in clip:
        return _borrowed_tower(file)
    tokenizer = tokenizer_from_dict(file.metadata.tokenizer)
    if "config" in clip:
        tower = build_clip(clip["config"], file.clip, str(file.path))
    elif clip:
        tower = load_referenced_clip(clip, file.path)
    else:
        raise WeightsError(
            f"{file.path}: contains only the learned tensors of {file.metadata.name!r}, and its CLIP cannot be "
            "downloaded; import the checkpoint again together with its CLIP (--clip)"
        )
    vocab_size = cast(Any, tower.model).token_embedding.num_embeddings
    if tokenizer.context_length != tower.context_length or tokenizer.vocab_size > vocab_size:
        raise WeightsError(
            f"{file.path}: the tokenizer gives {tokenizer.context_length} of {tokenizer.vocab_size} ids, but the text "
            f"tower takes {tower.context_length} of {vocab_size}"
        )
    tower.tokenizer = tokenizer
    return tower


def _borrowed_tower(file: ModelFile) -> FrozenClip:
    """The CLIP of the model, or of open_clip, that a small file names."""
    name, wanted = str(file.metadata.clip["model"]), file.metadata.clip["sha256"]
    clip = named_clip(name)
    if clip is not None:
        found = find_clip(clip)
        sha256, tower = found.sha256, load_clip_file(found.config, found.path)
        tower.tokenizer = clip_tokenizer(found)
    else:
        base = read_model_file(find_model(name))
        if "model" in base.metadata.clip:
            raise WeightsError(f"{file.path}: borrows the CLIP of {base.path}, which has none of its own")
        sha256, tower = base.sha256, _tower(base)
    if sha256 != wanted:
        raise WeightsError(
            f"{file.path}: was made with the model {name!r} with SHA-256 {wanted}, but that has {sha256}; use the same "
            "weights, or make the file again"
        )
    return tower
