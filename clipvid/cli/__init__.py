"""What the command line can do: one function a command, in files by what they are for."""
