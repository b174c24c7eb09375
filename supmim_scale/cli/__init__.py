"""The command line: one module per command, which parses arguments and calls another package."""
