"""The Label Studio ML backend: text-prompted pre-annotation, in batches and while somebody annotates.

Needs the extra ``label-studio``. What travels through it: a labeling configuration becomes a vocabulary
(`labeling_config`), a request becomes a plan (`requests`), the bytes of an image become pixels (`decoding`), a plan and
the pixels a decision (`predictor`), and a decision becomes regions in Label Studio's form (`drawing`, `results`). The
server (`app`), the batch command (`batch`) and the adapter for the ``label-studio-ml`` library (`ml_adapter`) all go
this way; the batch command does the steps before and after the model in other processes (`task_pipeline`,
`task_stages`).
"""
