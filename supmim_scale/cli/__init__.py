"""The command line: a module a command, which parses and calls a function of another room."""
