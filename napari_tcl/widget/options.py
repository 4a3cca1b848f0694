"""The parts of the widget that are plain forms: the image, the background, the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magicgui.widgets import CheckBox, ComboBox, Container, FloatSlider, LineEdit
from napari.layers import Image

from napari_tcl.layers import reader_of
from napari_tcl.metadata import METADATA_KEY
from napari_tcl.placement import check_shown_plane, current_index, frame_of, lies_on
from napari_tcl.slices import Index, SliceReader, axis_of
from napari_tcl.user_settings import LARGEST_TOLERANCE
from napari_tcl.widget.form import finish_form
from napari_tcl.words import background_names, background_text
from tcl_core.errors import ImageError
from tcl_core.polygons import TOLERANCES
from tcl_core.segmentation.specks import MinArea, read_min_area

if TYPE_CHECKING:
    from napari.components import ViewerModel

__all__ = ["BackgroundForm", "ImageForm", "PolygonForm"]

_NO_AXIS = "none"
_NO_WORD = "custom"
_DEFAULT_BACKGROUND = 0.5


class ImageForm(Container):
    """Which layer is the image, and which of its channels the model sees."""

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer
        self.layer = ComboBox(label="Image", choices=self._layers, tooltip="The image layer to segment.")
        self.axis = ComboBox(
            label="Channel axis",
            choices=[_NO_AXIS, "0", "1", "2", "3", "-1"],
            value=_NO_AXIS,
            tooltip="Axis of the layer's data that holds the channels, for images that are neither RGB nor grayscale.",
        )
        self.channels = LineEdit(
            label="Channels",
            value="0",
            tooltip="Channels for the model, such as 0,2: one as gray, two as red and green, three as red, green "
            "and blue.",
        )
        self.second, self.third = (
            ComboBox(
                label=f"{color} from",
                choices=self._companions,
                nullable=True,
                value=None,
                tooltip=f"For channels in separate layers: the one that becomes {color.lower()}. The image is red.",
            )
            for color in ("Green", "Blue")
        )
        # Few images need these, so they are shown apart.
        self.channel_form = Container(widgets=[self.axis, self.channels, self.second, self.third], labels=True)
        super().__init__(widgets=[self.layer], labels=True)
        finish_form(self)
        finish_form(self.channel_form)
        self.layer.changed.connect(lambda _: self._refill_companions())
        self._refill_companions()

    @property
    def summary(self) -> str:
        """How channels are read, in few words."""
        if self.axis.value != _NO_AXIS:
            return f"{self.channels.value} of axis {self.axis.value}"
        layers = 1 + sum(box.value is not None for box in (self.second, self.third))
        return f"{layers} layers" if layers > 1 else "gray or RGB"

    def is_offered(self, layer: object) -> bool:
        """Whether a layer can be chosen: an image that is not one of our own overlays."""
        return isinstance(layer, Image) and METADATA_KEY not in layer.metadata

    def _layers(self, _: object = None) -> list[tuple[str, Image]]:
        return [(layer.name, layer) for layer in self._viewer.layers if self.is_offered(layer)]

    def _companions(self, _: object = None) -> list[tuple[str, Image]]:
        """Gray layers that lie on the chosen one, pixel by pixel."""
        chosen = self.layer.value
        if chosen is None or chosen.rgb:
            return []
        return [(name, layer) for name, layer in self._layers() if layer is not chosen and lies_on(layer, chosen)]

    def refill(self) -> None:
        """Offer the layers that are there now, by their names of now; what is chosen stays chosen."""
        _refill(self.layer, [layer for _, layer in self._layers()])
        self._refill_companions()

    def _refill_companions(self) -> None:
        offered = [layer for _, layer in self._companions()]
        for box in (self.second, self.third):
            _refill(box, offered)
            box.visible = bool(offered)

    def choose(self, layer: Image) -> None:
        """Choose a layer that was opened or selected; companions of the chosen image are no new choice."""
        if not self.is_offered(layer) or layer in (self.second.value, self.third.value):
            return
        if self.layer.value is not layer:
            self.layer.value = layer

    def source(self) -> tuple[Image, SliceReader]:
        """The image's layer and its slices.

        Raises:
            ImageError: there is no image layer, or it cannot be read as chosen.
        """
        layer = self.layer.value
        if layer is None or layer not in self._viewer.layers:
            raise ImageError("no image is open; open one (File > Open), or a sample (File > Open Sample)")
        axis = None
        if self.axis.value != _NO_AXIS and not layer.rgb:
            axis = axis_of(self.axis.value, layer.ndim)
        others = [box.value for box in (self.second, self.third) if box.value is not None]
        return layer, reader_of(layer, axis, self._channels() if axis is not None else (0,), others)

    def reader(self) -> tuple[Image, SliceReader, Index]:
        """The image's layer, its slices, and the one that is shown.

        Raises:
            ImageError: see `source`, or the viewer shows something else than a slice.
        """
        layer, reader = self.source()
        frame = frame_of(layer, reader)
        check_shown_plane(self._viewer, layer, frame)
        return layer, reader, current_index(self._viewer, layer, frame)

    def _channels(self) -> tuple[int, ...]:
        try:
            return tuple(int(part) for part in self.channels.value.split(","))
        except ValueError:
            raise ImageError(
                f"channels: {self.channels.value!r} is not a list of numbers; enter one to three, such as 0,2"
            ) from None


def _refill(box: ComboBox, offered: list[Image]) -> None:
    """Fill a box anew. Left alone it would take a renamed layer for another one."""
    chosen = box.value
    with box.changed.blocked():
        box.reset_choices()
        stays = chosen if chosen in offered else None
        if stays is not None and box.value is not stays:
            box.value = stays
    if box.value is not chosen:
        box.changed.emit(box.value)


class BackgroundForm(Container):
    """Whether pixels may stay without a label, and from which score on they get one."""

    def __init__(self) -> None:
        self.on = CheckBox(
            text="Background", value=True, tooltip="On: pixels may stay unlabeled. Off: every pixel gets a label."
        )
        self.own = CheckBox(
            text="Custom threshold",
            value=False,
            tooltip="On: use the slider. Off: use the model's threshold.",
        )
        self.threshold = FloatSlider(
            min=0,
            max=1,
            step=0.005,
            value=_DEFAULT_BACKGROUND,
            tooltip="Score that a label must exceed to win against the background. Masks update as you change it.",
        )
        self.names = LineEdit(
            label="Competing names",
            value="auto",
            tooltip="Names that compete with the labels; pixels they win stay unlabeled. auto: the model's list of "
            "other things that images may show; none; or your own names, separated by commas.",
        )
        competing = Container(widgets=[self.names], labels=True)
        competing.tooltip = self.names.tooltip
        competing.margins = (0, 0, 0, 0)
        super().__init__(widgets=[self.on, self.own, self.threshold, competing], labels=False)
        finish_form(self)
        self.threshold.changed.connect(self._take_own)

    def _take_own(self) -> None:
        # Whoever moves the slider means it.
        self.own.value = True

    def show_default(self, threshold: float | None) -> None:
        """Let the slider start at the model's threshold.

        Args:
            threshold: in [0, 1]; ``None`` for a model without one, which changes nothing, as does a custom threshold.
        """
        if threshold is not None and not self.own.value:
            with self.threshold.changed.blocked():
                self.threshold.value = threshold

    @property
    def value(self) -> bool | float:
        """As in a label file: ``True``, ``False`` or a threshold."""
        if not self.on.value:
            return False
        return float(self.threshold.value) if self.own.value else True

    @property
    def competing_names(self) -> tuple[str, ...] | None:
        """As in a vocabulary: ``None`` for all else that an image may hold, empty for none."""
        return background_names(self.names.value)

    def set_value(self, background: bool, threshold: float | None, names: tuple[str, ...] | None = None) -> None:
        """Show what a label file says."""
        self.names.value = background_text(names)
        self.on.value = background
        if threshold is not None:
            self.threshold.value = threshold
        self.own.value = threshold is not None


class PolygonForm(Container):
    """Polygons and score maps beside the labels."""

    def __init__(self) -> None:
        self.tolerance = FloatSlider(
            label="Polygon tolerance",
            min=TOLERANCES["exact"],
            max=LARGEST_TOLERANCE,
            step=0.25,
            value=TOLERANCES["easy-to-edit"],
            tooltip="Maximum deviation from the mask, in pixels. 0: exact; larger: coarser, with fewer vertices.",
        )
        self.min_area = LineEdit(
            label="Min. area",
            value="auto",
            tooltip="Merge predicted regions with fewer pixels into their surroundings. auto: a quarter of the model's "
            "patch; 0: keep all. Your own strokes are not changed.",
        )
        self.geometry = ComboBox(
            label="Export as",
            choices=["polygon", "keyhole", "rle"],
            tooltip="polygon: simple rings, regions with holes are cut; keyhole: one ring, holes are bridged; rle: "
            "pixel-exact, but many readers drop it.",
        )
        self.polygons = CheckBox(
            text="Polygons layer",
            value=False,
            tooltip="Show the polygons that will be exported. They follow the labels; edit the labels to change them.",
        )
        self.scores = CheckBox(
            text="Score map layers", value=False, tooltip="Show the score map of each label as an image layer."
        )
        self.word = ComboBox(
            label="Polygons",
            choices=[*TOLERANCES, _NO_WORD],
            value="easy-to-edit",
            tooltip="How closely polygons follow the mask; easy-to-edit has few vertices to drag.",
        )
        self.word.changed.connect(self._follow_word)
        self.tolerance.changed.connect(self._follow_tolerance)
        super().__init__(
            widgets=[self.min_area, self.word, self.tolerance, self.geometry, self.polygons, self.scores], labels=True
        )
        finish_form(self)

    def _follow_word(self, word: str) -> None:
        if word in TOLERANCES and self.tolerance.value != TOLERANCES[word]:
            self.tolerance.value = TOLERANCES[word]

    def _follow_tolerance(self, pixels: float) -> None:
        words = [word for word, tolerance in TOLERANCES.items() if tolerance == pixels]
        self.word.value = words[0] if words else _NO_WORD

    def set_choice(
        self, min_area: MinArea | None = None, tolerance: float | None = None, geometry: str | None = None
    ) -> None:
        """Choose as the command line names it; ``None`` leaves a part as it is.

        Args:
            min_area: pieces of fewer pixels join their surroundings.
            tolerance: of polygons, at most `LARGEST_TOLERANCE` pixels.
            geometry: of the export.
        """
        if min_area is not None:
            self.min_area.value = str(min_area)
        if tolerance is not None:
            self.tolerance.value = tolerance
        if geometry is not None:
            self.geometry.value = geometry

    def least(self) -> MinArea:
        """The smallest area of a region.

        Raises:
            SettingsError: it is neither ``auto`` nor a number.
        """
        return read_min_area(self.min_area.value)
