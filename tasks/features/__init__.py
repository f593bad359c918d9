"""The feature store: what the frozen networks say about subjects, targets and texts, computed once.

The format is described in docs/features.md.
"""
