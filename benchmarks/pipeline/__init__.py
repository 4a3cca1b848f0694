"""How the stages of ``tcl-annotate prelabel`` overlap: ``python -m benchmarks.pipeline``."""
