"""Workers on other machines. An engine that exists hands out the work and restarts what dies.

`slurm`: an array of workers and a job that depends on it. `ray`: a task for each photograph. `hf_jobs`: jobs of the
Hub, each with a share of the photographs.
"""
