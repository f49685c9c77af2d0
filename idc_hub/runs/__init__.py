"""Run directories and the processes that work on them.

`run` is the directory, `worker` takes photographs from it, `launch` starts workers on this machine, `progress` shows
how far they are, `forecast` says beforehand how long they will take.
"""
