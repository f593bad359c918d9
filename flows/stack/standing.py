"""What a stack has besides its programs: a bucket with the sample catalog, a work pool, deployments, automations."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ezigen.config import ConfigurationError
from flows.stack.settings import BUCKET, ROOT, Stack

POOL = "ezigen"
TRIAL_CATALOG = "catalogs/trial.csv"
TRIAL_ROWS = 6
CATALOG = "catalogs/nightly.csv"
"""What infra/prefect.yaml's deployment reads."""


@contextmanager
def environment_of(stack: Stack) -> Iterator[None]:
    """While the block runs, this process talks to the stack's parts."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    before = {name: os.environ.get(name) for name in stack.environment}
    os.environ.update(stack.environment)
    try:
        with temporary_settings({PREFECT_API_URL: stack.api_url, PREFECT_API_AUTH_STRING: stack.auth_string}):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def make_pool(stack: Stack) -> None:
    """The work pool that deployments name, before the worker asks for it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with environment_of(stack), get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        except ObjectAlreadyExists:
            return


def deploy(stack: Stack) -> None:
    """infra/prefect.yaml: the deployments for a shared Ray cluster and a bucket."""
    file = ROOT / "infra" / "prefect.yaml"
    if not file.exists():
        raise ConfigurationError(f"{file} is missing; a stack is started from a checkout of the project.")
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "infra/prefect.yaml"],
        env={**os.environ, **stack.environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ConfigurationError(f"prefect deploy failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")


def automate(stack: Stack) -> None:
    """infra/automations.yaml, without a block that tells people."""
    from flows.automations import apply_automations

    with environment_of(stack):
        apply_automations(ROOT / "infra" / "automations.yaml")


def fill_bucket(stack: Stack) -> None:
    """The bucket, and the sample catalog as tonight's; a catalog that is there already stays."""
    from tasks.storage.filesystems import open_filesystem

    filesystem = open_filesystem("s3", stack.storage_options)
    if not filesystem.exists(BUCKET):
        filesystem.mkdir(BUCKET)
    if filesystem.exists(f"{BUCKET}/{CATALOG}"):
        return
    sample = ROOT / "ezigen" / "mini" / "catalog"
    for path in sorted((sample / "pictures").iterdir()):
        filesystem.pipe_file(f"{BUCKET}/catalogs/pictures/{path.name}", path.read_bytes())
    catalog = (sample / "catalog.csv").read_bytes()
    filesystem.pipe_file(f"{BUCKET}/{TRIAL_CATALOG}", b"".join(catalog.splitlines(keepends=True)[: 1 + TRIAL_ROWS]))
    filesystem.pipe_file(f"{BUCKET}/{CATALOG}", catalog)
