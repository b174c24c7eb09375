"""Scaling laws: runs or tables to points, points to fitted laws, laws to figures and a report.

Reads files only, never torch. `table` and `runs` make points, `laws` says what can be fitted,
`fit` fits, `bootstrap` gives intervals, `identify` refuses what the data cannot tell,
`chinchilla` gives compute-optimal sizes, `holdout` and `influence` say how far to trust it.
"""
