"""The condensed set: a folder that is, byte for byte, a dataset repository on the Hub.

`condensed_set` is the object that every verb hands on. `manifest`, `shards` and `parquet` are its formats, `pack` makes
its LR side, `hr` and `regenerate` its HR versions, `card` and `pictures` what people see, `check` and `gate` judge it.
"""
