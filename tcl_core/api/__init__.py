"""What `tcl_core` offers to Python code, above all rooms of the package; import it from `tcl_core` itself."""
