"""EZIGen: zero-shot subject-driven image generation (arXiv 2409.08091), one request or many."""

__version__ = "0.1.0"
