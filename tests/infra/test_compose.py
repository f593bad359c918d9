"""The one-machine setting: a valid Compose file, hardened services, nothing but loopback ports."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from ezigen.config import RayConfig
from flows.driver import END_TIMEOUT_S
from tests.infra.built import INFRA, argument, build, is_exact_image, the_pod

FOLDER = INFRA / "compose"
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
SECRETS = {"POSTGRES_PASSWORD", "PREFECT_AUTH_STRING", "RAY_AUTH_TOKEN"}

Service = dict[str, Any]


def example() -> dict[str, str]:
    lines = (FOLDER / ".env.example").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def filled_in() -> dict[str, str]:
    """The example as somebody fills it in: whatever was empty has a value."""
    return {name: value or "filled-in" for name, value in example().items()}


def interpolate(text: str, values: dict[str, str]) -> str:
    """What Compose makes of `${NAME}`, `${NAME:-default}` and `${NAME:?message}`."""

    def replace(match: re.Match[str]) -> str:
        name, kind, word = match.groups()
        value = values.get(name, "")
        if not value and kind == "?":
            raise ValueError(f"{name}: {word}")
        return value or (word if kind == "-" else "")

    return VARIABLE.sub(replace, text)


def text() -> str:
    return (FOLDER / "compose.yaml").read_text("utf-8")


def services(break_it: Callable[[dict[str, Service]], object] = lambda _: None) -> dict[str, Service]:
    found = yaml.safe_load(interpolate(text(), filled_in()))["services"]
    break_it(found)
    return found


def validate(compose: dict[str, Any]) -> None:
    """Raises ValueError for what the Compose specification does not know, and for what is named and missing."""
    plain = {name: value for name, value in compose.items() if not name.startswith("x-")}
    PyCompose.from_json(json.dumps(plain)).validate()
    named = plain["services"]
    for name, service in named.items():
        modes = [service.get(key, "") for key in ("network_mode", "ipc", "pid")]
        others = [*service.get("depends_on", {}), *(m.partition(":")[2] for m in modes if m.startswith("service:"))]
        missing = set(others) - named.keys()
        sources = {mount.partition(":")[0] for mount in service.get("volumes", [])}
        missing |= {source for source in sources if source[0] not in "./~"} - plain["volumes"].keys()
        if missing:
            raise ValueError(f"{name} needs {missing}")


def test_the_file_is_valid():
    validate(yaml.safe_load(interpolate(text(), filled_in())))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("stop_grace_period: 60s", "stop_grace_period: soon"),
        ("read_only: true", "read_only: perhaps"),
        ("restart: unless-stopped", "restarts: unless-stopped"),
        ("networks: [database]", "networks: [databases]"),
        ("network_mode: service:ray-head", "network_mode: service:head"),
        ("- postgres:/var/lib", "- postgresql:/var/lib"),
    ],
)
def test_an_invalid_file_is_refused(old, new):
    assert old in text()
    with pytest.raises(ValueError):  # noqa: PT011 - whatever the specification says about it
        validate(yaml.safe_load(interpolate(text().replace(old, new), filled_in())))


@pytest.mark.parametrize("name", sorted({*SECRETS, "EZIGEN_IMAGE"}))
def test_what_has_to_be_set_is_missed(name):
    values = filled_in()
    del values[name]
    with pytest.raises(ValueError, match=f"{name}: set it in"):
        interpolate(text(), values)


def test_every_variable_is_in_the_example_and_the_other_way_round():
    assert set(re.findall(r"\$\{(\w+)", text())) == example().keys()


def test_the_example_holds_no_secret():
    for name in SECRETS | {"AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN"}:
        assert example()[name] == ""


def wrong(found: dict[str, Service]) -> list[str]:
    """What is wrong with these services."""
    said = []
    for name, service in found.items():
        user = str(service.get("user", "0")).partition(":")[0]
        checks = {
            "root": user.isdigit() and int(user) > 0,
            "writes to its image": service.get("read_only") is True,
            "capabilities": service.get("cap_drop") == ["ALL"],
            "privileges": service.get("security_opt") == ["no-new-privileges:true"] and not service.get("privileged"),
            "image": is_exact_image(service["image"]),
            "no health": "test" in service.get("healthcheck", {}),
            "stays dead": service.get("restart") == "unless-stopped",
            "open port": all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service.get("ports", [])),
            "log without end": "max-size" in service.get("logging", {}).get("options", {}),
        }
        said += [f"{name}: {what}" for what, is_good in checks.items() if not is_good]
    return said


def test_every_service_is_hardened():
    assert wrong(services()) == []


@pytest.mark.parametrize(
    ("break_it", "what"),
    [
        (lambda s: s["worker"].pop("user"), "worker: root"),
        (lambda s: s["ray-head"].update(user="0:0"), "ray-head: root"),
        (lambda s: s["postgres"].update(ports=["5432:5432"]), "postgres: open port"),
        (lambda s: s["prefect-server"].update(ports=["0.0.0.0:4200:4200"]), "prefect-server: open port"),
        (lambda s: s["postgres"].update(image="docker.io/library/postgres"), "postgres: image"),
        (lambda s: s["worker"].pop("healthcheck"), "worker: no health"),
        (lambda s: s["worker"].update(cap_drop=["NET_RAW"]), "worker: capabilities"),
    ],
)
def test_a_service_that_is_not_is_told(break_it, what):
    assert wrong(services(break_it)) == [what]


def test_the_database_is_seen_by_the_server_alone():
    compose = yaml.safe_load(interpolate(text(), filled_in()))
    assert compose["networks"]["database"] == {"internal": True}
    assert {name for name, s in compose["services"].items() if "database" in s.get("networks", [])} == {
        "postgres",
        "prefect-server",
    }
    assert "ports" not in compose["services"]["postgres"]


def test_the_driver_stands_on_the_node_of_the_head():
    found = services()
    head, worker = found["ray-head"], found["worker"]
    assert {worker[key] for key in ("network_mode", "ipc", "pid")} == {"service:ray-head"}
    address = f"{argument(head, 'node-ip-address')}:{argument(head, 'port')}"
    assert worker["environment"]["EZIGEN_RAY_ADDRESS"] == address
    assert "ray:/tmp" in head["volumes"]
    assert worker["volumes"] == head["volumes"]
    assert worker["image"] == head["image"]
    assert worker["environment"]["RAY_AUTH_MODE"] == head["environment"]["RAY_AUTH_MODE"] == "token"


def test_a_stopped_worker_has_time_to_store_what_its_runs_have_done():
    worker = services()["worker"]
    seconds = int(worker["stop_grace_period"].removesuffix("s"))
    stop_timeout_s = float(argument(worker, "stop-timeout"))
    assert seconds > stop_timeout_s + 2 * END_TIMEOUT_S
    assert stop_timeout_s > RayConfig().grace_period_s + 10


def test_the_database_is_the_one_of_kubernetes():
    postgres = the_pod(build("overlays/gpu"), "postgres").containers[0]
    assert services()["postgres"]["image"] == postgres["image"]


def test_the_trial_without_gpus_changes_known_services():
    loader = type("ResetLoader", (yaml.SafeLoader,), {})
    loader.add_constructor("!reset", lambda *_: "reset")
    changed = yaml.load((FOLDER / "cpu.yaml").read_text("utf-8"), loader)["services"]
    assert changed["ray-head"] == {"deploy": "reset"}
    assert "devices" in services()["ray-head"]["deploy"]["resources"]["reservations"]
    assert changed["worker"]["environment"].keys() <= services()["worker"]["environment"].keys()
