"""What a file is, before any clip is read: its content, its equals, and whether it can be decoded."""
