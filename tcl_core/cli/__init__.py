"""The command line ``tcl-annotate``: one module for each command."""
