"""Import of a checkpoint of CoDe at its real size, and an image: ``python -m benchmarks.code_import``.

Weights are random, in the layout of the authors' ViT-B/16 checkpoint (CLIP's towers three times). Each step is a
process of its own, whose peak of resident memory the operating system reports, so that the program runs on Linux alone.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

__all__ = ["STEPS", "main"]

STEPS = ("write", "import", "segment")
"""Names of the steps, in their order."""

_SMALL_TEXT = {"width": 64, "heads": 1, "layers": 1}


def write(folder: Path, small: bool) -> None:
    """Write the checkpoint."""
    import open_clip
    import torch

    from tcl_core.methods.code import CoDe
    from tcl_core.towers.open_clip_vit import FrozenClip

    config = open_clip.get_model_config("ViT-B-16-quickgelu") or {}
    if small:
        config["embed_dim"] = 64
        config["vision_cfg"] |= {"width": 64, "layers": 3, "image_size": 64}
        config["text_cfg"] |= _SMALL_TEXT
    torch.manual_seed(0)
    code = CoDe(FrozenClip(open_clip.CLIP(**config)))
    clip = {name: tensor for name, tensor in code.clip.model.state_dict().items() if name != "attn_mask"}
    state = dict(code.learned_state_dict())
    state |= {f"frozen_clip.{name}": tensor for name, tensor in clip.items()}
    for name, tensor in clip.items():
        if name.startswith("visual."):
            inside = name.removeprefix("visual.")
            kind = (
                "clip_proj" if inside == "proj" else "clip_proj.ln" if inside.startswith("ln_post") else "clip_visual"
            )
            inside = inside.removeprefix("ln_post.") if kind == "clip_proj.ln" else inside
            state[f"clip_image_encoder.{kind}.{inside}"] = tensor.clone()
        elif name != "logit_scale":
            state[f"clip_text_encoder.prompt_learner.clip_model.{name}"] = copy = tensor.clone()
            if name != "token_embedding.weight":
                state[f"clip_text_encoder.text_encoder.{name}"] = copy
    width = code.bg_text.shape[-1]
    state["clip_text_encoder.prompt_learner.token_prefix"] = torch.zeros(1, 1, width)
    for part, count in (("x", 8), ("m", 8), ("std", 9)):
        state[f"pamr.aff_{part}.kernel"] = torch.ones(count, 1, 3, 3)
    print(f"{len(state)} tensors")
    torch.save({"model": state, "step": 50_000}, folder / "checkpoint.pth")


def import_(folder: Path, small: bool) -> None:
    """Import the checkpoint under the published name."""
    from tcl_core.models.checkpoints import import_checkpoint

    path = import_checkpoint(folder / "checkpoint.pth", name="code-vit-b16")
    print(f"{path.stat().st_size / 2**20:,.0f} MiB")


def segment(folder: Path, small: bool) -> None:
    """Segment a photograph with the imported model."""
    import skimage.data

    from tcl_core.models import load_model
    from tcl_core.segmentation.segmenter import Segmenter
    from tcl_core.vocabulary import Vocabulary

    segmenter = Segmenter(load_model("code-vit-b16", device="cpu"))
    image = skimage.data.astronaut()
    began = time.perf_counter()
    vocabulary = Vocabulary.from_options(["A=astronaut", "B=flag", "C=helmet"], background_names=())
    found = segmenter.segment(segmenter.encode(image), vocabulary)
    print(f"{image.shape[1]} x {image.shape[0]} pixels in {time.perf_counter() - began:.1f} s", found.label_map.shape)


def main() -> int:
    """Run all steps, or one of them in this process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.code_import", description=__doc__)
    parser.add_argument("--small", action="store_true", help="a model of a few megabytes, to try the program")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step is not None:
        {"write": write, "import": import_, "segment": segment}[options.step](options.folder, options.small)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(f"{time.process_time():.1f} CPU seconds, peak memory {peak:,.0f} MiB")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            print(f"{step}: ", end="", flush=True)
            command = [sys.executable, "-m", "benchmarks.code_import", "--step", step, "--folder", folder]
            done = subprocess.run(
                [*command, *(["--small"] if options.small else [])],
                env={**os.environ, "TCL_ANNOTATE_HOME": f"{folder}/home"},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                print(done.stderr)
                return 1
            print("; ".join(done.stdout.splitlines()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
