"""Runs in Label Studio's environment: its own checks of predictions, and its own decoder of brush masks.

Reads ``{"config": str, "predictions": [...]}`` from the standard input; writes ``{"errors": [...], "masks": [[...]]}``
with the runs of each brush region's alpha channel, row by row, as ``[value, length]``.
"""

import json
import sys

import numpy as np
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface

given = json.load(sys.stdin)
interface = LabelInterface(given["config"])
errors = []
masks = []
for prediction in given["predictions"]:
    errors += interface.validate_prediction(prediction, return_errors=True)
    for region in prediction["result"]:
        if region["type"] != "brushlabels":
            continue
        pixels = decode_rle(region["value"]["rle"]).reshape(-1, 4)
        assert all(np.array_equal(pixels[:, 3], pixels[:, channel]) for channel in range(3))
        alpha = pixels[:, 3]
        starts = np.concatenate(([0], np.flatnonzero(alpha[1:] != alpha[:-1]) + 1, [len(alpha)]))
        masks.append(
            [[int(alpha[start]), int(stop - start)] for start, stop in zip(starts[:-1], starts[1:], strict=True)]
        )
json.dump({"errors": errors, "masks": masks}, sys.stdout)
