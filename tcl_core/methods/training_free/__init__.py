"""Training-free methods: a text-prompted segmenter of any CLIP with a plain vision transformer."""

from tcl_core.methods.training_free.last_block import NACLIP, SCLIP, ClearCLIP, MaskCLIP
from tcl_core.methods.training_free.maskclip_refined import MaskCLIPRefined
from tcl_core.methods.training_free.names import BACKGROUND_NAMES
from tcl_core.methods.training_free.scclip import SCCLIP

__all__ = ["BACKGROUND_NAMES", "NACLIP", "SCCLIP", "SCLIP", "ClearCLIP", "MaskCLIP", "MaskCLIPRefined"]
