"""Comparing sets by training the same students on them: `plan`, `ladder`, `statistics`, `tables`, `plots`."""
