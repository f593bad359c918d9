"""The flow personalize_catalog with workers that need no networks, for deployments of a stack."""

import functools

import tasks.catalog.run
from flows.personalize_catalog import personalize_catalog
from tests.run.light import DoomedWorker

tasks.catalog.run.run_catalog = functools.partial(tasks.catalog.run.run_catalog, worker=DoomedWorker)

__all__ = ["personalize_catalog"]
