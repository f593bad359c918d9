"""`ezigen doctor`: what this machine has, what is missing, and what to do about it."""

import os
import shutil
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.markup import escape

from ezigen.config import ClusterConfig, ConfigurationError, ModelConfig
from flows.terminal import out

GIB = 2**30
MIN_MEMORY_GIB = 4.0

Verdict = Literal["good", "note", "bad"]
_STYLES = {"good": "[green]good[/]", "note": "[yellow]note[/]", "bad": "[bold red]bad [/]"}


@dataclass(frozen=True)
class Finding:
    """What one check found; `remedy` says what to do unless it is good."""

    verdict: Verdict
    subject: str
    detail: str
    remedy: str = ""


def examine(*, address: str, model: ModelConfig, storage: str | None) -> bool:
    """Runs every check and prints it as soon as it is known. False if something is bad."""
    healthy = True
    for check in _checks(address, model, storage):
        for finding in _guarded(check):
            _print(finding)
            healthy = healthy and finding.verdict != "bad"
    return healthy


def _checks(address: str, model: ModelConfig, storage: str | None) -> list[Callable[[], Iterator[Finding]]]:
    checks: list[Callable[[], Iterator[Finding]]] = [
        check_versions,
        check_machine,
        check_gpu,
        partial(check_model, model),
        check_prefect,
        partial(check_ray, address),
    ]
    return [*checks, partial(check_storage, storage)] if storage else checks


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; one that breaks is a finding too, and the next ones still run."""
    try:
        yield from check()
    except ConfigurationError as error:
        yield Finding("bad", _name(check), str(error))
    except Exception as error:  # noqa: BLE001 - whatever breaks here is what the person has to know
        yield Finding("bad", _name(check), f"{type(error).__name__}: {error}", "run with --debug, or report it")


def _name(check: Callable[[], Iterator[Finding]]) -> str:
    function = check.func if isinstance(check, partial) else check
    return str(function.__name__).removeprefix("check_")


def _print(finding: Finding) -> None:
    remedy = f"\n      [dim]{escape(finding.remedy)}[/]" if finding.remedy else ""
    out.print(f"{_STYLES[finding.verdict]}  {finding.subject:9} {escape(finding.detail)}{remedy}")


# ---- the checks


def check_versions() -> Iterator[Finding]:
    """Python, and every installed package against constraints.txt (or against our own requirements without it)."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding("good", "python", f"{python} at {sys.executable}")
    wanted = _constraints() or _requirements()
    wrong = [text for text in map(_compare, wanted) if text]
    if wrong:
        remedy = "make setup, or pip install -c constraints.txt -e . in this environment"
        yield Finding("bad", "packages", "; ".join(wrong), remedy)
    else:
        yield Finding("good", "packages", f"{len(wanted)} checked, all as they should be")
    if _version("torchvision"):
        yield Finding("note", "packages", "torchvision is installed", "beside a CPU torch it breaks transformers' CLIP")


def check_machine() -> Iterator[Finding]:
    """Cores and memory."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    available_gib = memory.available / GIB
    detail = f"{cores} cores, {available_gib:.1f} of {memory.total / GIB:.1f} GiB memory free"
    if available_gib < MIN_MEMORY_GIB:
        yield Finding("note", "machine", detail, f"Ray and one worker want {MIN_MEMORY_GIB:g} GiB; use --workers 1")
    else:
        yield Finding("good", "machine", detail)


def check_gpu() -> Iterator[Finding]:
    """GPUs as torch sees them."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding("good", "gpu", f"{properties.name}, {properties.total_memory / GIB:.0f} GiB")
    elif shutil.which("nvidia-smi"):
        remedy = "install the CUDA build of torch, or check the driver with nvidia-smi"
        yield Finding("bad", "gpu", f"there is an NVIDIA driver, but torch {torch.__version__} sees no GPU", remedy)
    else:
        yield Finding("good", "gpu", "none; the embedded model runs on the cores")


def check_model(model: ModelConfig) -> Iterator[Finding]:
    """The model, and its adapter where there is one to look for: the embedded model's own, or the one that is named."""
    from ezigen.adapters import adapter_fingerprint
    from ezigen.adapters.card import WEIGHTS_FILE, check_base, read_card
    from ezigen.models import model_fingerprint
    from tasks.adapters import local_adapter, pin_adapter

    fingerprint = model_fingerprint(model.model)
    yield Finding("good", "model", f"{model.model} is complete, fingerprint {fingerprint[:12]}")
    if model.adapter == "none" or (model.adapter == "auto" and model.model != "mini"):
        return
    adapter = pin_adapter(model.adapter, model.adapters_uri)
    folder = local_adapter(adapter, model.model, model.adapters_uri)
    if folder is not None and (folder / WEIGHTS_FILE).is_file():
        check_base(read_card(folder), fingerprint, adapter)
    yield Finding(
        "good", "adapter", f"{adapter} is complete, fingerprint {adapter_fingerprint(str(folder), model.model)[:12]}"
    )


def check_prefect() -> Iterator[Finding]:
    """The Prefect server that runs report to."""
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        detail = "PREFECT_API_URL is not set: every command starts a temporary server"
        yield Finding("good", "prefect", detail)
        return
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=10):  # noqa: S310 - the operator's own server
            yield Finding("good", "prefect", f"{url} answers")
    except (urllib.error.URLError, OSError, ValueError) as error:
        remedy = "start it (prefect server start), mend PREFECT_API_URL, or unset it to use a temporary server"
        yield Finding("bad", "prefect", f"{url} does not answer ({error})", remedy)


def check_ray(address: str) -> Iterator[Finding]:
    """Ray, started here or joined."""
    from tasks.cluster.connection import connect

    started = time.monotonic()
    with connect(ClusterConfig(address=address)) as cluster:
        cores = sum(node.get("CPU", 0.0) for node in cluster.nodes)
        gpus = sum(node.get("GPU", 0.0) for node in cluster.nodes)
        what = "starts" if address == "local" else f"at {address} answers"
        seconds = time.monotonic() - started
        yield Finding("good", "ray", f"{what} in {seconds:.0f} s: {cores:g} cores, {gpus:g} GPUs")


def check_storage(uri: str) -> Iterator[Finding]:
    """Whether something can be written to a folder or bucket, read back and removed."""
    from tasks.storage import RunOutput

    output, name, content = RunOutput(uri), f".doctor-{uuid.uuid4().hex}", b"ezigen"
    try:
        output.write(name, content)
        if output.read(name) != content:
            yield Finding("bad", "storage", f"{output.root_uri} gives back something else than was written")
            return
    except Exception as error:  # noqa: BLE001 - every store has its own exceptions
        remedy = "check the path, the permissions, and for s3:// the AWS_* variables (endpoint, keys, region)"
        yield Finding("bad", "storage", f"{output.root_uri}: {type(error).__name__}: {error}", remedy)
        return
    output.filesystem.rm_file(output.path(name))
    yield Finding("good", "storage", f"{output.root_uri} can be written and read")


# ---- versions


def _constraints() -> list[Requirement]:
    """What constraints.txt says about installed packages, if this is a checkout."""
    path = Path(__file__).parent.parent / "constraints.txt"
    if not path.is_file():
        return []
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [wanted for line in lines if line and _version((wanted := Requirement(line)).name)]


def _requirements() -> list[Requirement]:
    """What our own package asks for, extras left out."""
    wanted = (Requirement(text) for text in metadata.requires("ezigen-pipeline") or ())
    return [requirement for requirement in wanted if requirement.marker is None or requirement.marker.evaluate()]


def _compare(wanted: Requirement) -> str:
    installed = _version(wanted.name)
    if installed is None:
        return f"{wanted.name} is missing"
    fits = wanted.specifier.contains(installed, prereleases=True)
    return "" if fits else f"{wanted.name} is {installed}, not {wanted.specifier}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
