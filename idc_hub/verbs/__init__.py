"""What users do: one file a verb, each a short composition of the rooms below it.

`idc_hub.condense` is `verbs.condense.condense`, and so on. Every verb returns a frozen dataclass, whose fields are the
keys of the command's `--json`, and raises the errors of `idc_hub.errors`.
"""
