"""Runs beside the stand-in for 2.x: makes a model for every call, as 2.x does, and prints what it answered.

Reads ``{"label_config": str, "calls": [{"tasks": [...], "context": ...}]}`` from the standard input.
"""

import json
import sys


def main() -> None:
    # Here, because only the process that runs this file has a label_studio_ml.
    from labelstudio_backend.ml_adapter import TclModel

    given = json.load(sys.stdin)
    answers = []
    for call in given["calls"]:
        model = TclModel(project_id="7", label_config=given["label_config"])
        before = model.model_version
        predictions = model.predict(call["tasks"], context=call["context"], login=None, password=None)
        answers.append({"version": before, "predictions": predictions})
    model.fit("ANNOTATION_CREATED", {"project": {"id": 7}}, job_id="1")
    unfinished = TclModel(project_id="8", label_config="<View/>")
    json.dump({"answers": answers, "unfinished": unfinished.model_version}, sys.stdout)


if __name__ == "__main__":
    main()
