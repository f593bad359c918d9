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
    """The sum of the samples of that name with these labels, as they are now; None without any."""
    return Scrape().total(name, **labels)


class Scrape:
    """Every sample of one moment."""

    def __init__(self) -> None:
        families = text_string_to_metric_families(scrape())
        self.samples = [sample for family in families for sample in family.samples]

    def total(self, name: str, **labels: str) -> float | None:
        """The sum of the samples of that name with these labels; None without any."""
        found = [one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items()]
        return sum(found) if found else None
