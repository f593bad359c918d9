"""Readers of the data that people bring."""
