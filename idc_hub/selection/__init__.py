"""Choosing real patches: what a condensed set is compared with. `methods` choose, `pool` makes the Run."""
