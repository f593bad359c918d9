"""`ezigen pairs`, `features`, `plan` and `inspect`: what they print, exit codes, signals."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from prefect.client.schemas.objects import StateType

from ezigen.config import RayConfig
from tasks.pairs import plan_pairs, run_pairs
from tasks.storage import OutputFolder
from tests.flows.conftest import ROOT, CommandLine
from tests.flows.test_command_line import assert_nothing_left, last_state
from tests.flows.test_training_data import CONFIG
from tests.pairs_run.conftest import World, read_pairs, stored_bytes, world
from tests.run.catalogs import write_catalog

__all__ = ["world"]

SETTINGS = ("--size", 32, "--seed", 1, "--set", "pairs.coco.min_area_px=100")


def lines_of(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def arguments(world: World, output: Path, *, per_shard: int = 8) -> tuple:
    """A set of 32 pairs, as `finished_pairs` holds it."""
    sources = ("--coco", world.coco, "--youtube-vis", world.youtube_vis, "--num-coco", 20, "--num-youtube-vis", 12)
    return (output, *sources, *SETTINGS, "--pairs-per-shard", per_shard)


@pytest.fixture(scope="module")
def finished_pairs(world: World, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = OutputFolder(str(tmp_path_factory.mktemp("finished") / "pairs"))
    inputs = world.inputs(output.root_uri, num_coco_pairs=20, num_youtube_vis_pairs=12)
    run_pairs(plan_pairs(inputs, CONFIG, output), output, cluster=RayConfig(address=ray_address, num_workers=2))
    return Path(output.root_uri)


# ---- plan


def test_plan_pairs_counts_and_writes_nothing(tmp_path, world, ezigen):
    command = ezigen("plan", "pairs", *arguments(world, tmp_path / "pairs"))
    assert command.returncode == 0, command.stderr
    assert any(line.startswith("coco: pairs wanted 20") for line in lines_of(command.stdout))
    assert any(line.startswith("youtube_vis: candidates") for line in lines_of(command.stdout))
    assert not (tmp_path / "pairs").exists()


def test_plan_features_prints_rows_bytes_and_the_break_even(tmp_path, finished_pairs, ezigen, tiny_model):
    command = ezigen("plan", "features", finished_pairs, tmp_path / "store", "--model", tiny_model)
    assert command.returncode == 0, command.stderr
    assert "pairs 32" in lines_of(command.stdout)
    assert "break-even" in command.stdout
    assert not (tmp_path / "store").exists()

    refused = ezigen("plan", "features", finished_pairs, tmp_path / "store", "--model", tiny_model, "--max-gib", 1e-6)
    assert refused.returncode == 2
    assert "inputs.max_gib" in refused.stderr


def test_plan_takes_a_catalog_without_the_word(tmp_path, ezigen):
    catalog = write_catalog(tmp_path / "shop", 4)
    ways = [("plan", catalog, tmp_path / "out"), ("plan", "--limit", 4, catalog, tmp_path / "out")]
    ways.append(("plan", "catalog", catalog, tmp_path / "out"))
    printed = [ezigen(*way) for way in ways]
    assert [command.returncode for command in printed] == [0, 0, 0]
    assert printed[0].stdout == printed[1].stdout == printed[2].stdout
    assert "rows 4" in lines_of(printed[0].stdout)


def test_plan_explains_itself(ezigen):
    told = ezigen("plan", "--help").stdout
    assert "ezigen plan CATALOG OUTPUT" in told
    assert all(f"│ {name}" in told for name in ("catalog", "pairs", "features"))


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["pairs", "OUT"], "inputs: name at least one data set: coco_uri or youtube_vis_uri"),
        (["pairs", "OUT", "--coco", "nowhere"], "nowhere"),
        (["pairs", "OUT", "--youtube-vis", "tests"], "instances.json"),
        (["pairs", "OUT", "--coco", "nowhere", "--size", 8], "pairs.size_px: Input should be greater than or equal"),
        (["pairs", "OUT", "--coco", "nowhere", "--set", "sampler.steps=1"], "groups inputs, pairs, cluster"),
        (["pairs", "OUT", "--coco", "x", "--set", "pairs.coco.area=1"], "pairs.coco has no field 'area'; known"),
        (["pairs", "OUT", "--coco", "x", "--set", "pairs.youtube_vis.min_mask_share=0.9"], "min_mask_share"),
        (["features", "docs", "OUT"], "no finished set of pairs"),
        (["features", "docs", "OUT", "--model", "nowhere/at/all"], "no such folder"),
        (["features", "docs", "OUT", "--dtype", "fp4"], "features.dtype"),
        (["features", "docs", "OUT", "--set", "features.depth=1"], "features has no field 'depth'"),
        (["plan", "pairs", "OUT", "--coco", "nowhere"], "nowhere"),
        (["inspect", "docs"], "nothing that can be inspected"),
        (["inspect", "nowhere"], "does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(tmp_path, ezigen, options, says):
    command = ezigen(*(tmp_path / "out" if option == "OUT" else option for option in options))
    assert command.returncode == 2, command.stdout + command.stderr
    assert says in command.stderr
    assert "Traceback" not in command.stderr
    assert "Prefect" not in command.stderr
    assert not (tmp_path / "out").exists()


# ---- runs


def test_a_finished_set_costs_seconds(finished_pairs, world, ezigen, reporting_here):
    command = ezigen("pairs", *arguments(world, finished_pairs), "--address", "127.0.0.1:9")
    assert command.returncode == 0, command.stderr
    assert "nothing to do: 32 pairs" in command.stdout
    assert "COCO 20 20" in " ".join(lines_of(command.stdout))
    assert f"card: {finished_pairs / 'card.html'}" in command.stdout


def test_sigterm_keeps_finished_shards_and_another_run_makes_the_others(tmp_path, world, reporting_line: CommandLine):
    output = tmp_path / "stopped"
    # Large pictures and a shard for each, so that there is time to stop it.
    large = ("--size", 1024, "--pairs-per-shard", 1, "--set", "pairs.coco.min_area_px=100", "--workers", 1)
    wanted = ("pairs", output, "--coco", world.coco, "--num-coco", 12, *large)
    stopped = reporting_line.start(*wanted)
    stopped.wait_until(lambda: list(output.glob("pairs/*.parquet")), "a first shard")
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.wait() == 143, stopped.stderr
    assert "left; run again to continue" in stopped.stdout
    assert "Traceback" not in stopped.stderr
    assert_nothing_left(stopped)
    assert last_state(reporting_line, output.name).type is StateType.CRASHED
    kept = stored_bytes(output)
    assert 0 < len(list(output.glob("pairs/*.parquet"))) < 12
    assert not (output / "manifest.json").exists()
    assert not (output / "card.html").exists()

    again = reporting_line.run(*wanted)
    assert again.process.returncode == 0, again.stderr
    ids = read_pairs(output, ["pair_id"]).column(0).to_pylist()
    assert len(ids) == len(set(ids)) == 12
    assert kept.items() <= stored_bytes(output).items()


# ---- inspect


def test_inspect_prints_counts_and_saves_pictures(finished_pairs, tmp_path, ezigen):
    command = ezigen("inspect", finished_pairs, "--save", tmp_path / "look")
    assert command.returncode == 0, command.stderr
    assert "pairs 32" in lines_of(command.stdout)
    assert "coco 20" in lines_of(command.stdout)
    path = tmp_path / "look" / "pairs-contact-sheet.jpg"
    assert f"picture: {path}" in command.stdout
    assert Image.open(path).width > 700

    pair_id = read_pairs(finished_pairs, ["pair_id"]).column(0)[0].as_py()
    one = ezigen("inspect", finished_pairs, "--id", pair_id, "--save", tmp_path / "look")
    assert f"pair_id {pair_id}" in lines_of(one.stdout)
    assert (tmp_path / "look" / f"pairs-{pair_id.replace('/', '-')}.png").is_file()

    unknown = ezigen("inspect", finished_pairs, "--id", "coco/train/none")
    assert unknown.returncode == 2
    assert "near it: coco/train/" in unknown.stderr


def test_pictures_that_cannot_be_saved_are_told(finished_pairs, tmp_path, ezigen):
    (tmp_path / "file").write_text("")
    command = ezigen("inspect", finished_pairs, "--save", tmp_path / "file")
    assert command.returncode == 2
    assert "--save" in command.stderr


def test_the_world_writes_data_sets_that_can_be_planned(tmp_path, ezigen):
    for name, options in (("coco", ("--num-images", "6")), ("youtube-vos", ("--num-videos", "2"))):
        command = [sys.executable, "-m", "ezigen.mini.world", name, str(tmp_path / name), "--side", "128", *options]
        subprocess.run(command, check=True, cwd=ROOT, timeout=120)
    planned = ezigen(
        "plan", "pairs", tmp_path / "out", "--coco", tmp_path / "coco", "--youtube-vis", tmp_path / "youtube-vos"
    )
    assert planned.returncode == 0, planned.stderr
    assert any(line.startswith("coco: candidates") for line in lines_of(planned.stdout))
    assert any(line.startswith("youtube_vis: candidates") for line in lines_of(planned.stdout))
