"""The verbs of the public API, one per module: `idc_hub.condense` is `verbs.condense.condense`, and so on.

Every verb returns a frozen dataclass and raises the errors of `idc_hub.errors`. The fields of the dataclass are the
keys that `idc VERB --json` prints.
"""
