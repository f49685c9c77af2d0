"""The `idc` command: parses arguments, calls a verb of `idc_hub`, and prints its result."""
