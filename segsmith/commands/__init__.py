"""The `segsmith` commands, one module per family: they parse, call a workflow and print."""
