"""The condensed set and its repository folder, which is byte for byte a dataset repository on the Hub.

Every verb works on a `condensed_set.CondensedSet`. `manifest`, `shards` and `parquet` define the file formats, `pack`
makes the LR side, `hr` and `regenerate` make HR versions, `card` and `pictures` describe the set to people, `check`
verifies it, and `gate` and `judgment` judge its quality.
"""
