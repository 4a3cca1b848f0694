"""The Label Studio ML backend: text-prompted pre-annotation, in batches and while somebody annotates.

Needs the extra ``label-studio``. What travels through it: a labeling configuration becomes a vocabulary
(`labeling_config`), a request becomes a plan (`requests`), a plan and the bytes of an image become regions in Label
Studio's form (`predictor`, `results`). The server (`app`), the batch command (`batch`) and the adapter for the
``label-studio-ml`` library (`ml_adapter`) all go this way.
"""
