"""Baselines to compare a condensed set with. `methods`: how to choose real patches. `pool`: the Run of a selection."""
