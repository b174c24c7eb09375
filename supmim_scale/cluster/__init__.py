"""Slurm: a task's place in a job, templates and their submission, studies, jobs at a glance.

Nothing here imports torch: it runs on a login node.
"""
