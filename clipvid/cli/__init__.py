"""The command line: parse, call, print; one function per command."""
