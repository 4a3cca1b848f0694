"""What a fitted ReCo is made of besides its towers, and what can be changed afterwards."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from tcl_core.errors import SettingsError
from tcl_core.methods.options import MethodOptions, option
from tcl_core.validation import Text, checked, validated

__all__ = ["ReCoConfig", "ReCoOptions"]


class ReCoOptions(MethodOptions):
    """What can be changed after fitting."""

    temperature: float = option(10.0, "Slope of the language attention.", affects="scores", gt=0, le=1000)
    finish_pixels: int = option(
        640 * 640,
        "Compute scores at image size up to this number of pixels; upsample them for larger images.",
        affects="features",
        ge=1,
    )


@checked("reco", SettingsError)
class ReCoConfig:
    """Settings of a fitted method.

    Attributes:
        names: the words that have a reference, in the order of the references; none twice.
    """

    names: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _differ(self) -> ReCoConfig:
        if len(set(self.names)) != len(self.names):
            raise ValueError("the names must differ from each other")
        return self

    @classmethod
    def from_dict(cls, entry: Any) -> ReCoConfig:
        """Check and read plain settings.

        Raises:
            SettingsError: a setting is unknown or not valid.
        """
        return validated(cls, entry, "reco", SettingsError)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {"names": list(self.names)}
