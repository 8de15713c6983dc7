"""From words on a command line to a function and its arguments: options, option files, help and error messages."""
