"""Loading a model by name: everything that turns images and prompts into score maps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from tcl_core.devices import select_device, select_precision
from tcl_core.errors import SettingsError, VocabularyError, WeightsError
from tcl_core.methods import Method, create_method
from tcl_core.models.metadata import ModelMetadata, Preprocess
from tcl_core.models.modelfile import ModelFile, read_model_file
from tcl_core.models.registry import ModelRow, fetch_model, find_model, list_models
from tcl_core.models.towers import build_clip, load_referenced_clip
from tcl_core.segmentation.text_debiasing import PromptDebiasing
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import Tokenizer, tokenizer_from_dict

__all__ = ["Model", "ModelRow", "Preprocess", "fetch_model", "list_models", "load_model", "model_from_file"]


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model.

    Attributes:
        name: how it is called in lists and in COCO's ``info``.
        method: the method with its learned weights, on ``device``, in eval mode.
        clip: the frozen CLIP inside ``method``.
        tokenizer: from prompts to token ids.
        preprocess: from images to input.
        templates: name of the prompt template set that is used where a vocabulary names none.
        background_threshold: ``{"pamr": t, "plain": t}``, the constant background score with and without refinement.
        weights_sha256: of the model file, in hexadecimal.
        device: where it runs.
        precision: number format of the matrix products.
        metadata: everything that the model file says about itself.
        debiasing: what is taken out of prompts that do not name it; ``None`` for nothing.
    """

    name: str
    method: Method
    clip: FrozenClip
    tokenizer: Tokenizer
    preprocess: Preprocess
    templates: str
    background_threshold: Mapping[str, float]
    weights_sha256: str
    device: torch.device
    precision: torch.dtype
    metadata: ModelMetadata
    debiasing: PromptDebiasing | None = None

    def check_prompts(self, prompts: Iterable[str]) -> None:
        """Refuse prompts with words that the model never learned, because their scores would mean nothing.

        Raises:
            VocabularyError: a prompt has such a word; the message names prompt, words and model.
        """
        for prompt in prompts:
            unknown = self.tokenizer.unknown_words(prompt)
            if unknown:
                words = ("the word " if len(unknown) == 1 else "the words ") + ", ".join(map(repr, unknown))
                raise VocabularyError(
                    f"prompt {prompt!r}: the model {self.name!r} does not know {words}; use"
                    " other words, or a model with an open vocabulary such as tcl-vit-b16"
                )


def load_model(name_or_path: str | os.PathLike[str], device: str = "auto", precision: str = "auto") -> Model:
    """Load a model.

    Args:
        name_or_path: a name of :func:`list_models`, or the path of a model file (``.safetensors``).
        device: see :func:`tcl_core.devices.select_device`.
        precision: see :func:`tcl_core.devices.select_precision`.

    Raises:
        WeightsError: there is no such model, it is not fetched, or its file is damaged or does not fit.
        SettingsError: the device or the precision is not available.
    """
    # First what costs nothing: a wrong device should not be found out after reading a large file.
    chosen = select_device(device)
    number_format = select_precision(precision, chosen)
    return model_from_file(read_model_file(find_model(name_or_path)), chosen, number_format)


def model_from_file(file: ModelFile, device: torch.device, precision: torch.dtype) -> Model:
    """Build a model from a file in memory.

    Args:
        file: see :func:`tcl_core.models.modelfile.read_model_file`.
        device: where it will run.
        precision: number format of the matrix products; the weights stay float32.

    Raises:
        WeightsError: its CLIP is missing, or its tensors do not fit its description.
    """
    metadata = file.metadata
    if "config" in metadata.clip:
        clip = build_clip(metadata.clip["config"], file.clip, str(file.path))
    elif metadata.clip:
        clip = load_referenced_clip(metadata.clip, file.path)
    else:
        raise WeightsError(
            f"{file.path}: holds the learned tensors of {metadata.name!r} alone, and its CLIP is not one that can be "
            "downloaded; import the checkpoint again together with its CLIP"
        )
    try:
        method = create_method(metadata.method, clip, metadata.method_config)
        method.load_learned_state_dict(file.learned)
        tokenizer = tokenizer_from_dict(metadata.tokenizer)
        debiasing = None
        if metadata.debiasing and file.debiasing_axes is not None:
            axes = file.debiasing_axes.to(device)
            debiasing = PromptDebiasing.from_file(metadata.debiasing["words"], axes, clip.embed_dim)
    except (WeightsError, SettingsError) as error:
        raise WeightsError(f"{file.path}: {error}") from error
    vocab_size = cast(Any, clip.model).token_embedding.num_embeddings
    if tokenizer.context_length != clip.context_length or tokenizer.vocab_size > vocab_size:
        raise WeightsError(
            f"{file.path}: the tokenizer gives {tokenizer.context_length} of {tokenizer.vocab_size} ids, but the text "
            f"tower takes {clip.context_length} of {vocab_size}"
        )
    return Model(
        name=metadata.name,
        method=method.eval().requires_grad_(False).to(device),
        clip=clip,
        tokenizer=tokenizer,
        preprocess=metadata.preprocess,
        templates=metadata.templates,
        background_threshold=dict(metadata.background_threshold),
        weights_sha256=file.sha256,
        device=device,
        precision=precision,
        metadata=metadata,
        debiasing=debiasing,
    )
