"""The command line: one small module a command, each with a `main(arguments)`."""
