"""Pixels and files: reading photographs, cutting and shrinking them, measuring results. Knows no network.

`files` reads and writes image files; `sources` finds photographs, with `hub_dataset` for those on the Hub and `layouts`
to tell HR from LR; `resize` downscales as MATLAB does; `patches` cuts; `metrics` measures.
"""
