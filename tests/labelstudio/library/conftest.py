"""The stand-in for 2.x is for a process of its own: here it would pass for the installed library."""

collect_ignore = ["signature_of_2"]
