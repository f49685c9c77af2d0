"""Benchmarks: train the same students on several sets and compare them.

`plan`: what to compare. `ladder`: carry out a plan. `statistics`, `tables`, `plots`: evaluate and report it.
"""
