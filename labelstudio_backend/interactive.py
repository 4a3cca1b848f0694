"""What an annotator asked, answered: the one way that the server and the adapter both go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelstudio_backend.labeling_config import LabelingConfig
from labelstudio_backend.predictor import Prediction, Predictor
from labelstudio_backend.prompts import Added, PromptStore, TypedPrompt, cleared_text, read_typed
from labelstudio_backend.requests import Asked, Context, Plan, freeze
from tcl_core.errors import SettingsError

__all__ = ["Answer", "Question", "answer", "answer_command"]


@dataclass(frozen=True)
class Question:
    """All that an answer depends on besides the image.

    Attributes:
        config: the project's labeling configuration.
        added: the project's typed prompts so far, by label.
        context: what an annotator typed or drew; ``None`` asks for the default prediction.
        known: results that the task has already, see :func:`labelstudio_backend.known_regions.results_of_task`.
    """

    config: LabelingConfig
    added: Added
    context: Context | None = None
    known: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Answer:
    """What was found, and what was learned.

    Attributes:
        prediction: the regions.
        learned: label and prompt that the project should remember, if any.
    """

    prediction: Prediction
    learned: tuple[str, str] | None = None


def answer(predictor: Predictor, question: Question, image: bytes) -> Answer:
    """Answer a question about an image.

    Raises:
        ImageError: the image cannot be read.
        VocabularyError: the prompt cannot be used, or the model knows no word of it.
        SettingsError: what was typed is an unknown command, or what was drawn does not fit the image.
    """
    config, context, added = question.config, question.context, freeze(question.added)
    if context is None:
        return Answer(predictor.predict(image, Plan(config, added)))
    if context.drawn is not None:
        drawn = context.drawn
        return Answer(predictor.predict(image, Plan(config, added, drawn.label, drawn=drawn, known=question.known)))
    if context.text is None:
        return Answer(Prediction([], 0.0, (0, 0)))
    typed = read_typed(context.text, config, question.added)
    label, prompt, note = typed.label, typed.prompt, None
    if typed.action == "nearest":
        routed = predictor.route(str(prompt), config, question.added)
        label = routed.label
        note = f"The prompt {prompt!r} was added to the nearest label, {label!r} (similarity {routed.similarity:.2f})."
    prompts = None if prompt is None else (prompt,)
    plan = Plan(config, added, label=label, prompts=prompts, note=note, known=question.known)
    prediction = predictor.predict(image, plan)
    learned = (str(label), str(prompt)) if typed.action in ("add", "nearest") else None
    return Answer(prediction, learned)


def answer_command(
    asked: Asked | None, store: PromptStore, project: str, *, remember: bool = True
) -> Sequence[str] | None:
    """Carry out a typed command such as ``/list``; it needs neither image nor model.

    Args:
        asked: what an annotator did.
        store: the prompts that were typed.
        project: whose prompts.
        remember: whether annotators may change them.

    Returns:
        Lines for the prompt field, or ``None`` where nothing was commanded.

    Raises:
        SettingsError: the command is unknown, or the prompts cannot be read or written.
        VocabularyError: the text cannot be a prompt.
    """
    if asked is None or asked.context.text is None:
        return None
    typed: TypedPrompt = read_typed(asked.context.text, asked.config, store.get(project))
    if typed.action == "list":
        return _listed(store.get(project))
    if typed.action == "clear":
        if not remember:
            raise SettingsError("typed prompts are not remembered by this server, so there are none to clear")
        count = store.clear(project, typed.label)
        return [cleared_text(count, typed.label)]
    return None


def _listed(added: Added) -> Sequence[str]:
    lines = [f"{label}: {', '.join(prompts)}" for label, prompts in added.items() if prompts]
    return lines or ["no typed prompts yet"]
