"""Benchmarks: who is shown, what is asked, and what the images are held against."""

from tasks.evaluation.benchmarks import Benchmark, BenchmarkCase, catalog_rows
from tasks.evaluation.reading import read_benchmark, read_benchmarks

__all__ = ["Benchmark", "BenchmarkCase", "catalog_rows", "read_benchmark", "read_benchmarks"]
