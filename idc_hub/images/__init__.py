"""Pixels and files: reading photographs, cutting and shrinking them, measuring results. Knows no network.

`files` reads and writes image files, `sources` finds photographs, `resize` shrinks as MATLAB does, `patches`
cuts, `metrics` measures.
"""
