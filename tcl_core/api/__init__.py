"""The implementation of the names that `tcl_core` exports; import them from `tcl_core`."""
