"""Checks of files before any clip is read: their content, their equals, and whether they can be decoded."""
