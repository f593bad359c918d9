"""What a built wheel holds: an installation without the checkout has everything that the package reads."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ezigen", "tasks", "flows")

pytestmark = pytest.mark.slow

# Reads, from an installation alone, every kind of file that lies beside the code.
READ_EVERYTHING = """
import csv
from importlib import resources
from pathlib import Path

import ezigen.mini
from ezigen.mini.world.captions import describe
from ezigen.mini.world.products import make_variants, read_products, select_products
from ezigen.mini.recipe.judge import Bench
from ezigen.config import ModelConfig, embedded
from ezigen.metrics import load_scorer
from ezigen.sampling import load_generator

assert len(read_products()) > 400
assert len(make_variants([p for p in select_products(held_out=True)], shifts=(0,))) == 22
rows = list(csv.DictReader(ezigen.mini.catalog_file().open()))
pictures = {row["subject_uri"] for row in rows if row["item_id"].split("-")[0] != "wrong"}
assert pictures and all((ezigen.mini.catalog_file().parent / uri).is_file() for uri in pictures)
load_generator(ModelConfig(), embedded())
assert load_scorer(ModelConfig()).clip is not None
Bench(ezigen.mini.weights_folder() / "judge" / "judge.safetensors")
assert "<html" in resources.files("tasks.reports").joinpath("templates", "report.html.j2").read_text()
print(Path(ezigen.__file__).parent.parent)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy of the sources: setuptools takes along what an earlier build left in its folder."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(folder / "source")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_a_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    sources = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert len({Path(name).suffix for name in sources}) > 8  # code, tables, pictures, weights, templates
    assert held == sources


def test_what_a_wheel_installs_reads_its_own_files(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    done = subprocess.run(
        [sys.executable, "-c", READ_EVERYTHING],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "installed")
