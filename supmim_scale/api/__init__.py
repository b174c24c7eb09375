"""What `import supmim_scale as sm` gives: a handful of functions over the other packages.

Each does what a command of the same name does, with keywords instead of options, and raises
`UserError` where the command would print its one line. `supmim_scale/__init__.py` loads a module
here on the first use of one of its names, so that importing the package costs nothing.
"""
