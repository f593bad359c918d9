"""Fixtures for every test."""

from tests.s3_server import s3_folder, s3_server

__all__ = ["s3_folder", "s3_server"]
