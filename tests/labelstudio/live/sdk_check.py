"""Runs in Label Studio's environment: its own checks of predictions, and its own decoder of brush masks.

Reads ``{"config": str, "predictions": [...]}`` from the standard input; writes ``{"errors": [...], "masks": [[...]]}``
with the runs of each brush region's alpha channel, row by row, as ``[value, length]``.
"""

import importlib
import json
import sys
from typing import Any

import numpy as np


def main() -> None:
    # By name, because the library is only in the environment that this file is run in.
    decode_rle = importlib.import_module("label_studio_sdk.converter.brush").decode_rle
    interface_type = importlib.import_module("label_studio_sdk.label_interface").LabelInterface
    given = json.load(sys.stdin)
    interface = interface_type(given["config"])
    errors: list[str] = []
    masks: list[Any] = []
    for prediction in given["predictions"]:
        errors += interface.validate_prediction(prediction, return_errors=True)
        for region in prediction["result"]:
            if region["type"] not in ("brush", "brushlabels"):
                continue
            pixels = decode_rle(region["value"]["rle"]).reshape(-1, 4)
            assert all(np.array_equal(pixels[:, 3], pixels[:, channel]) for channel in range(3))
            alpha = pixels[:, 3]
            starts = np.concatenate(([0], np.flatnonzero(alpha[1:] != alpha[:-1]) + 1, [len(alpha)]))
            runs = zip(starts[:-1], starts[1:], strict=True)
            masks.append([[int(alpha[start]), int(stop - start)] for start, stop in runs])
    json.dump({"errors": errors, "masks": masks}, sys.stdout)


if __name__ == "__main__":
    main()
