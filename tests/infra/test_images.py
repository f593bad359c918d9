"""The container image: what hadolint says, exact bases, nobody is root, and nothing but the code goes in."""

import fnmatch
import re

from tests.infra.built import INFRA, ROOT, is_exact_image, run_tool

DOCKERFILE = INFRA / "images/Dockerfile"


def instructions(name: str) -> list[str]:
    """The arguments of every instruction of that name; continued lines are one."""
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text("utf-8"))
    return [line.partition(" ")[2].strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def copied() -> list[str]:
    """What is copied from the checkout."""
    return [source for line in instructions("COPY") if not line.startswith("--from") for source in line.split(" ")[:-1]]


def allowed() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in lines, "what is not named stays out"
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


def test_hadolint_has_nothing_to_say():
    assert run_tool("hadolint", "--failure-threshold", "style", DOCKERFILE) == ""


def test_bases_are_exact_and_of_the_projects_python():
    stages = {line.partition(" AS ")[2] for line in instructions("FROM")}
    bases = {line.partition(" ")[0] for line in instructions("FROM")}
    outside = {base for base in bases if base not in stages and "$" not in base}
    (python,) = outside
    assert is_exact_image(python)
    wanted = re.search(r'python_version = "([\d.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert python.startswith(f"docker.io/library/python:{wanted[1]}.")
    assert {"torch-cpu", "torch-gpu"} <= stages


def test_every_installation_keeps_to_the_constraints():
    installed = re.findall(r"pip install [^\n]*", DOCKERFILE.read_text("utf-8"))
    assert len(installed) == 4
    for command in installed:
        assert "-c constraints.txt" in command or "--no-deps" in command
    assert "pip check" in DOCKERFILE.read_text("utf-8")


def test_the_last_user_is_a_number_and_not_root():
    user, group = instructions("USER")[-1].split(":")
    assert int(user) == int(group) > 0


def test_processes_get_signals_and_orphans_are_reaped():
    assert instructions("ENTRYPOINT") == ['["tini", "--"]']
    assert instructions("CMD")[0].startswith('["')


def test_what_is_copied_may_go_in_and_is_there():
    """A source that .dockerignore leaves out fails only when somebody builds the image."""
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert any(source == name or source.startswith(f"{name}/") for name in allowed()), source


def test_what_may_go_in_is_copied():
    assert {name for name in allowed() if not any(fnmatch.fnmatch(source, name) for source in copied())} == set()


def test_the_code_of_every_layer_is_in_the_image():
    packages = re.search(r"include = \[([^]]*)\]", (ROOT / "pyproject.toml").read_text("utf-8"))
    assert set(re.findall(r'"(\w+)\*"', packages[1])) <= set(copied())


def test_no_variable_of_the_image_is_secret():
    for line in instructions("ENV") + instructions("ARG"):
        assert not re.search(r"TOKEN|PASSWORD|SECRET|_KEY", line), line
