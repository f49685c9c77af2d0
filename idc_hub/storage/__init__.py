"""Everything that touches the disk: the Run directory and the repository tree inside it.

`atomic` writes files and folders that are either old or new, `manifest` is idc.json, `shards` holds the LR
patches, `parquet` the rows of an HR version, `run` the directory around them.
"""
