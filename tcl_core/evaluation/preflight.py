"""Check several evaluations before the first one starts, so that the last one does not fail after hours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tcl_core.errors import DataSetError
from tcl_core.evaluation.datasets import DataSet
from tcl_core.evaluation.jobs import DataSpec, EvaluationJob
from tcl_core.evaluation.processes import OnProgress, on_device_of_torchrun, torchrun_share
from tcl_core.evaluation.run import Evaluation, Share, check_images

__all__ = ["check_jobs"]


def check_jobs(jobs: Sequence[EvaluationJob], overwrite: bool = False, on_progress: OnProgress | None = None) -> None:
    """Look for everything that would stop one of several evaluations: cheap checks first, then all labels and images.

    Args:
        jobs: the evaluations; those of one data set share its `DataSpec`.
        overwrite: whether earlier results may differ in their settings.
        on_progress: called while labels and images are checked.

    Raises:
        DataSetError: a data set is incomplete, or a label does not fit; if several data sets are incomplete, the
            message has a line for each.
        ImageError: an image cannot be read.
        WeightsError: a model cannot be used.
        VocabularyError: a model does not know a word of a class name.
        SettingsError: a setting does not fit, or a folder contains results with other settings.
    """
    share = torchrun_share() or Share()
    data = dict(zip(map(id, (job.data for job in jobs)), _opened([job.data for job in jobs]), strict=True))
    pending: dict[int, set[int]] = {}
    for key, evaluation in _evaluations(jobs, data, share):
        _check_words(evaluation)
        if overwrite:
            missing = list(range(share.process, len(evaluation.images), share.count))
        else:
            missing = evaluation.pending(share)
        pending.setdefault(key, set()).update(missing)
    done, total = 0, sum(map(len, pending.values()))
    for key, indices in pending.items():

        def report(what: str, number: int, _: int, before: int = done) -> None:
            if on_progress is not None:
                on_progress(what, before + number, total)

        check_images(data[key], sorted(indices), report)
        done += len(indices)


def _opened(specs: Sequence[DataSpec]) -> list[DataSet]:
    """The data sets, each opened once; everything that is missing is reported together."""
    found: dict[int, DataSet] = {}
    faults: dict[int, str] = {}
    for spec in specs:
        if id(spec) in found or id(spec) in faults:
            continue
        try:
            found[id(spec)] = spec.open()
        except DataSetError as error:
            faults[id(spec)] = str(error)
    if faults:
        raise DataSetError("\n".join(dict.fromkeys(faults.values())))
    return [found[id(spec)] for spec in specs]


def _evaluations(
    jobs: Sequence[EvaluationJob], data: dict[int, DataSet], share: Share
) -> Iterator[tuple[int, Evaluation]]:
    """The evaluations, model by model, because only one model is in memory at a time."""
    models = list(dict.fromkeys(job.model.name for job in jobs))
    for job in sorted(jobs, key=lambda job: models.index(job.model.name)):
        key = id(job.data)
        if torchrun_share() is not None:
            job = on_device_of_torchrun(job, share)
        yield key, job.open(data[key])


def _check_words(evaluation: Evaluation) -> None:
    vocabulary, segmenter = evaluation.competing.vocabulary, evaluation.segmenter
    prompts = [prompt for _, prompt in vocabulary.prompts]
    segmenter.model.check_prompts(prompts)
    # The words of the templates are the same for every prompt, and embedding all prompts can take a minute.
    segmenter.embed_prompts(prompts[:1], vocabulary.templates)
