"""Annotation files and evaluation protocols."""
