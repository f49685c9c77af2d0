"""Baselines that choose real patches. `methods`: how to choose. `pool`: the Run of a selection."""
