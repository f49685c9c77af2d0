"""The `idc` command: a thin layer over `idc_hub.api` that reads arguments and prints results."""
