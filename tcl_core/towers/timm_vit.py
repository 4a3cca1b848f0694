"""A frozen vision transformer of timm as an encoder of correspondences: no texts, patch features alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tcl_core.errors import SettingsError, WeightsError
from tcl_core.tensors import state_faults

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "TimmVit", "build_timm_vit"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Classifiers, which nobody asks.
_HEADS = ("head.", "head_dist.", "fc_norm.")


class TimmVit(nn.Module):
    """Patch features of a vision transformer after its final norm, for images normalized as a CLIP wants them.

    Args:
        model: a plain vision transformer of timm, made with ``dynamic_img_size=True``.
        mean: by which the images that are given are normalized.
        std: by which the images that are given are normalized.

    Raises:
        WeightsError: it is none.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        parts = cast(Any, model)
        if not hasattr(model, "forward_features") or not hasattr(model, "num_prefix_tokens"):
            raise WeightsError(f"{type(model).__name__} is no plain vision transformer of timm; choose a ViT or DeiT.")
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = None
        self.width = int(parts.embed_dim)
        self.patch_size = int(parts.patch_embed.patch_size[0])
        own_mean, own_std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", (torch.tensor(std) / own_std).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((torch.tensor(mean) - own_mean) / own_std).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> TimmVit:
        """Stay in eval mode whatever is asked: the tower is frozen."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features float ``[B, C, h, w]`` of images ``[B, 3, H, W]``; H and W multiples of the patch size."""
        parts = cast(Any, self.model)
        tokens = parts.forward_features(images * self.scale + self.shift)[:, parts.num_prefix_tokens :]
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        return cast(Tensor, tokens.transpose(1, 2).unflatten(2, grid))


def build_timm_vit(
    name: str, tensors: Mapping[str, Tensor], what: str, mean: Sequence[float], std: Sequence[float]
) -> TimmVit:
    """Build an encoder and fill it with tensors.

    Args:
        name: of an architecture of timm.
        tensors: by timm's names; those of classifiers are left out.
        what: file that is named in messages.
        mean: by which the images that are given are normalized.
        std: by which the images that are given are normalized.

    Raises:
        SettingsError: timm is not installed.
        WeightsError: timm knows no such transformer, or the tensors do not fit.
    """
    try:
        import timm
    except ImportError as error:
        raise SettingsError(
            "the image encoder needs timm; run: pip install 'tcl-annotate[reco]', or use --encoder clip"
        ) from error
    architecture = name.partition(".")[0]
    # A model file that came from elsewhere says the name: timm itself would also take a page of the hub, or a folder.
    if not timm.is_model(architecture):
        raise WeightsError(f"{what}: timm has no vision transformer {name!r}; name an architecture of timm's list")
    kept = {key: tensor.float() for key, tensor in tensors.items() if not key.startswith(_HEADS)}
    try:
        # Without memory first, for the name may be that of a far larger one.
        _check_tensors(_empty(architecture), kept, name, what)
        model = _created(architecture)
    except (RuntimeError, TypeError) as error:
        raise WeightsError(f"{what}: timm has no vision transformer {name!r} ({error})") from error
    _check_tensors(model, kept, name, what)
    model.load_state_dict(kept)
    return TimmVit(model, mean, std)


def _created(architecture: str) -> nn.Module:
    import timm

    return cast(nn.Module, timm.create_model(architecture, pretrained=False, num_classes=0, dynamic_img_size=True))


def _empty(architecture: str) -> nn.Module | None:
    """A model without numbers; ``None`` where it looks at its numbers while it is made."""
    try:
        with torch.device("meta"):
            return _created(architecture)
    except (NotImplementedError, RuntimeError):
        return None


def _check_tensors(model: nn.Module | None, tensors: Mapping[str, Tensor], name: str, what: str) -> None:
    if model is not None and (faults := state_faults(model.state_dict(), tensors)):
        raise WeightsError(f"{what}: the tensors do not fit {name}; {'; '.join(faults)}")
