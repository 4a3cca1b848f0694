"""Speed, memory and correctness on a GPU, in one run of a few minutes: ``python -m benchmarks.gpu``."""
