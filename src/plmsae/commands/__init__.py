"""The verbs of the command line, one module each: `SUMMARY`, `add_arguments(parser)` and `main(args) -> exit code`."""
