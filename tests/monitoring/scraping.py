"""Reading what Ray tells Prometheus, as Prometheus does."""

import urllib.request

import ray
from prometheus_client.parser import text_string_to_metric_families


def metrics_address() -> str:
    """Of the Ray that this process is connected to, which has one node."""
    (node,) = ray.nodes()
    return f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"


def scrape() -> str:
    with urllib.request.urlopen(f"http://{metrics_address()}/metrics", timeout=30) as answer:
        return answer.read().decode()


def total(name: str, **labels: str) -> float | None:
    """The sum of the samples of that name with these labels; None without any."""
    values = [
        sample.value
        for family in text_string_to_metric_families(scrape())
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(values) if values else None
