"""Run directories and the processes that work on them.

`run`: the directory. `claims`: who works on which photograph. `worker`: a process that condenses photographs of a Run.
`launch`: start workers on this machine.
`progress`: report how far they are. `forecast`: estimate how long they will take.
"""
