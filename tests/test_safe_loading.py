"""Nothing that is read can run: rules over the source that the linter has none for."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for package in ("ezigen", "tasks", "flows", "bench") for path in (ROOT / package).rglob("*.py"))

UNPICKLERS = {"cloudpickle", "dill", "jsonpickle", "joblib", "marshal", "pandas", "shelve"}
OPTIONS = {"weights_only", "allow_pickle", "trust_remote_code", "formats", "shell"}
PICKLE_ERRORS_ONLY = "ezigen/adapters/weights.py"
"""Names the exceptions of `torch.load(..., weights_only=True)`."""


def problems(source: str, name: str = "") -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            roots = {module.partition(".")[0] for module in modules}
            if roots & UNPICKLERS or ("pickle" in roots and name != PICKLE_ERRORS_ONLY):
                yield f"{name}:{node.lineno} imports {', '.join(modules)}"
        if isinstance(node, ast.Attribute) and node.attr in ("load", "loads", "Unpickler") and _is(node, "pickle"):
            yield f"{name}:{node.lineno} unpickles"
        if isinstance(node, ast.Call):
            yield from (f"{name}:{node.lineno} {problem}" for problem in call_problems(node))


def call_problems(call: ast.Call) -> Iterator[str]:
    function = call.func
    called = f"{function.value.id}.{function.attr}" if isinstance(function, ast.Attribute) and _is(function) else ""
    given = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg in OPTIONS}
    if called == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if given.get("allow_pickle", "False") != "False":
        yield "numpy may unpickle"
    if given.get("trust_remote_code", "False") != "False":
        yield "runs code of a model's folder"
    if called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
        yield "YAML that makes objects"
    if called == "Image.open" and "formats" not in given:
        yield "Image.open without formats, which lets Pillow try all of its decoders"
    if given.get("shell", "False") != "False":
        yield "a shell"


def _is(node: ast.Attribute, module: str = "") -> bool:
    """Whether it is an attribute of a module, as far as names tell."""
    return isinstance(node.value, ast.Name) and module in ("", node.value.id)


def test_nothing_that_is_read_can_run():
    assert len(SOURCES) > 300
    found = [problem for path in SOURCES for problem in problems(path.read_text(), str(path.relative_to(ROOT)))]
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "def f():\n    import cloudpickle as c",
        "torch.load(path)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(folder, trust_remote_code=trust)",
        "yaml.load(text)",
        "Image.open(path)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_the_rules_find(source):
    assert list(problems(source))
