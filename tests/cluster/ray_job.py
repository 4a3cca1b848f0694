"""Jobs on two local Ray workers, of which some are killed: ``python -m tests.cluster.ray_job FOLDER MODEL OTHER``.

FOLDER holds ``images``; outputs are written beside them, and what happened is printed as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from tcl_core.errors import TclError
from tcl_core.export.coco import CocoExporter
from tcl_core.jobs.inputs import find_images
from tcl_core.jobs.job import run_prelabel
from tcl_core.jobs.journal import journal_path
from tcl_core.jobs.ray_cluster import RayCluster
from tests.cluster.deadly import Deadly, make_segmenter
from tests.core.test_prelabel import VOCABULARY


def interrupt_when(journal: Path, lines: int) -> None:
    """Send Ctrl-C to this process once a journal has so many lines."""
    while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


def main(folder: Path, model: str, other: str) -> dict[str, Any]:
    """All jobs; returns what happened."""
    images = find_images([str(folder / "images")])
    segmenter = make_segmenter(model)
    happened: dict[str, Any] = {}
    term = signal.getsignal(signal.SIGTERM)
    with RayCluster("local", partial(make_segmenter, model), 2, 0) as cluster:
        happened["signals are kept"] = signal.getsignal(signal.SIGTERM) == term

        def run(name: str, exporter: CocoExporter, **options: Any) -> None:
            out = folder / name / "out.json"
            said = StringIO()
            with redirect_stderr(said):
                try:
                    summary = run_prelabel(
                        images, segmenter, VOCABULARY, out, exporter, cluster=cluster, quiet=False, **options
                    )
                    found: dict[str, Any] = {
                        "done": summary.done,
                        "failed": dict(summary.failed),
                        "interrupted": summary.interrupted,
                        "shares": summary.stages.shares(),
                    }
                except TclError as error:
                    found = {"error": str(error)}
            happened[name] = {**found, "said": said.getvalue()}

        once = Deadly("09.png", marker=folder / "marker")
        run("killed", once, preview=folder / "killed" / "preview")

        journal = journal_path(folder / "interrupted" / "out.json")
        threading.Thread(target=interrupt_when, args=(journal, 5), daemon=True).start()
        run("interrupted", Deadly(seconds=0.2))

        cluster.make_segmenter = partial(make_segmenter, other)
        run("another model", CocoExporter())
        cluster.make_segmenter = partial(make_segmenter, str(folder / "nowhere.safetensors"))
        run("no model", CocoExporter())

        # With a process beside the network of the only worker, which works on several groups at a time.
        cluster.make_segmenter = partial(make_segmenter, model)
        cluster.count = cluster.processes = 1
        run("deadly image", Deadly("09.png"))
    return happened


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *sys.argv[2:])))
