"""Jobs on a cluster: templates and their submission, arrays of a study, runs at a glance.

Nothing here imports torch: it runs on a login node.
"""
