"""The form of the widget in which the model is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from magicgui.widgets import CheckBox, ComboBox, Container, FileEdit, LineEdit

from napari_tcl.model_cache import ModelChoice
from napari_tcl.widget.form import finish_form
from napari_tcl.words import join_texts, split_texts
from tcl_core.backends import available_backends
from tcl_core.devices import available_devices, available_precisions, select_device
from tcl_core.errors import SettingsError
from tcl_core.methods import list_methods
from tcl_core.methods.options import values_from_texts
from tcl_core.models import list_models
from tcl_core.models.registry import split_method
from tcl_core.vocabulary.templates import TEMPLATE_SETS

__all__ = ["ModelForm"]

_DEFAULT = "model default"


class ModelForm(Container):
    """Which model, where and how."""

    def __init__(self) -> None:
        self.model = ComboBox(
            label="Model",
            choices=lambda _: [row.name for row in list_models() if row.installed],
            tooltip="Models that are ready on this computer. 'playground' knows only its toy world.",
        )
        self.file = FileEdit(
            label="Model file",
            filter="*.safetensors",
            nullable=True,
            value=None,
            tooltip="Your own model file, used instead of the model above.",
        )
        self.method = ComboBox(
            label="Method",
            choices=[_DEFAULT, *list_methods()],
            tooltip="Segmentation method. Methods other than the model's default must be training-free.",
        )
        self.device = ComboBox(
            label="Device",
            choices=["auto", *available_devices()],
            tooltip="Device to run the network on; auto uses a GPU if there is one.",
        )
        self.precision = ComboBox(
            label="Precision",
            choices=self._precisions,
            tooltip="Number format of the network on this device; auto is recommended.",
        )
        self.backend = ComboBox(
            label="Backend",
            choices=self._backends,
            tooltip="What runs the network on this device; auto is recommended. 'compile' needs a C++ compiler and a "
            "minute for each new size of images.",
        )
        self.refine = CheckBox(
            text="Refine edges (PAMR)",
            value=True,
            tooltip="Refine masks along image edges. Off: coarser masks.",
        )
        self.method_options = LineEdit(
            label="Options",
            value="",
            tooltip="Options of the method, separated by commas, such as kp_weight=0.2. 'tcl-annotate models options "
            "NAME' lists them. Empty: the model's own.",
        )
        self.templates = ComboBox(
            label="Templates",
            choices=[_DEFAULT, *TEMPLATE_SETS],
            tooltip="Sentences that prompts are put into, such as 'a photo of a {}.' A label file may set them too.",
        )
        widgets = [
            self.model,
            self.file,
            self.method,
            self.method_options,
            self.templates,
            self.device,
            self.precision,
            self.backend,
            self.refine,
        ]
        super().__init__(widgets=widgets, labels=True)
        finish_form(self)
        self.device.changed.connect(self._on_device)

    def _on_device(self, _: object) -> None:
        self.precision.reset_choices()
        self.backend.reset_choices()

    def _precisions(self, _: object) -> list[str]:
        return ["auto", *available_precisions(self.device.value or "auto")]

    def _backends(self, _: object) -> list[str]:
        return ["auto", *available_backends(select_device(self.device.value or "auto"))]

    @property
    def summary(self) -> str:
        """What is chosen, in few words."""
        name = Path(self.own_file).name if self.own_file else str(self.model.value)
        method = f"{self.own_method}, " if self.own_method else ""
        return f"{method}{name}, {self.device.value}"

    @property
    def own_file(self) -> str:
        """The user's model file, empty for none."""
        own = self.file.value
        return "" if own is None or str(own) in ("", ".") else str(own)

    @property
    def own_method(self) -> str:
        """The chosen method, empty for the model's."""
        return "" if self.method.value == _DEFAULT else str(self.method.value)

    @property
    def own_templates(self) -> str | None:
        """The chosen template set, ``None`` for the model's."""
        return None if self.templates.value == _DEFAULT else str(self.templates.value)

    def set_templates(self, name: str | None) -> None:
        """Choose a template set, ``None`` for the model's."""
        self.templates.value = name or _DEFAULT

    def set_choice(
        self,
        model: str | None = None,
        device: str | None = None,
        precision: str | None = None,
        backend: str | None = None,
        refine: bool | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Choose as the command line names it; ``None`` leaves a part as it is.

        Args:
            model: name of a model or path of a model file, with or without a method before a colon. Options of the
                method before are cleared.
            device: name of a device.
            precision: name of a precision.
            backend: name of what runs the network.
            refine: whether masks follow the image's edges.
            options: values of the method's options by their names, in place of all others.

        Raises:
            SettingsError: the device, the precision or the backend is not offered on this computer.
        """
        if model is not None or options is not None:
            self.method_options.value = join_texts(f"{name}={value}" for name, value in (options or {}).items())
        if model is not None:
            method, name = split_method(model)
            if model in self.model.choices:
                self.model.value, self.file.value, self.method.value = model, None, _DEFAULT
            else:
                self.method.value = method or _DEFAULT
                listed = next((row for row in self.model.choices if split_method(str(row))[1] == name), None)
                if listed is None:
                    self.file.value = Path(name)
                else:
                    self.model.value, self.file.value = listed, None
        for part, wanted, what in (
            (self.device, device, "device"),
            (self.precision, precision, "precision"),
            (self.backend, backend, "backend"),
        ):
            if wanted is None:
                continue
            if wanted not in part.choices:
                raise SettingsError(f"the {what} {wanted!r} is not offered; use {', '.join(map(str, part.choices))}")
            part.value = wanted
        if refine is not None:
            self.refine.value = refine

    def choice(self) -> ModelChoice:
        """What is chosen.

        Raises:
            SettingsError: there is no model, or the options are not ``NAME=VALUE``.
        """
        name = self.own_file or self.model.value
        if not name:
            raise SettingsError(
                "no model is selected; to see the available models, run 'tcl-annotate models list' in a terminal"
            )
        if self.own_method:
            name = f"{self.own_method}:{split_method(name)[1]}"
        texts = [text for text in split_texts(self.method_options.value) if text.strip()]
        options = tuple(values_from_texts(texts, "options:").items())
        return ModelChoice(
            name, self.device.value, self.precision.value, self.backend.value, bool(self.refine.value), options
        )
