"""Versions and aliases, on a disk and on S3: what is published stays, whoever publishes at the same time or dies."""

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ezigen.config import ConfigurationError
from tasks.adapters import Registry
from tasks.storage import Locations, OutputFolder
from tasks.storage.writing import write_new

UNKNOWN = [
    ("owl@latest", r"no adapter of that name; near it: owls"),
    ("owls@v7", r"no version v7 .*near it: v2, v1"),
    ("owls@prod", r"no alias prod .*near it: production"),
    ("owls", r"no alias latest .*owls alone means owls@latest"),
    ("Owls@latest", r"'Owls': use lower-case"),
    ("owls@V1", r"'V1': use lower-case .*a version is written v1"),
    ("owls@", r"alias ''"),
]


def files_below(folder: OutputFolder) -> dict[str, bytes]:
    filesystem = folder.filesystem
    paths = filesystem.find(folder.root.path)
    return {
        path.strip("/").removeprefix(folder.root.path.strip("/") + "/"): filesystem.cat_file(path) for path in paths
    }


def publish_in_processes(uri, folder, runs_of_each):
    """Processes that begin to publish at the same moment; the versions that each of them was given."""
    command = [sys.executable, "-m", "tests.adapters.publisher", uri, "owls", str(folder), "latest"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, *runs], **pipes) for runs in runs_of_each]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return printed


class RegistryCases:
    """Needs the fixture `uri`, an empty place for a registry."""

    def test_what_is_published_is_found_by_version_alias_and_name(self, uri, make_folder):
        registry, folder = Registry(uri), make_folder(3)
        published = registry.publish("owls", folder, run="r3", alias="latest", metrics={"dino": 0.7})
        assert published.reference == "owls@v1"
        for reference in ("owls@v1", "owls@latest", "owls"):
            assert Registry(uri).resolve(reference) == published
        stored = files_below(OutputFolder(published.uri))
        assert sorted(stored) == ["adapter.safetensors", "card.json", "sheet-0.jpg"]
        assert stored["adapter.safetensors"] == (folder / "adapter.safetensors").read_bytes()
        card = published.card
        assert card.weights_sha256 == hashlib.sha256(stored["adapter.safetensors"]).hexdigest()
        assert card.files == {"sheet-0.jpg": hashlib.sha256(b"picture 0").hexdigest()}
        assert (card.training, card.metrics, card.run) == ({"steps": 3}, {"dino": 0.7}, "r3")
        assert json.loads(stored["card.json"])["created_at"] == card.created_at != ""

    def test_versions_are_counted_and_names_are_apart(self, uri, make_folder):
        registry, folder = Registry(uri), make_folder()
        for number in range(1, 12):
            assert registry.publish("owls", folder, run=str(number)).version == f"v{number}"
        assert registry.publish("cups", folder).version == "v1"
        assert registry.versions("owls") == tuple(f"v{number}" for number in range(1, 12))
        assert registry.names() == ("cups", "owls")
        assert registry.versions("foxes") == ()

    def test_the_same_run_is_the_same_version_and_undoes_no_later_move(self, uri, make_folder):
        registry, folder = Registry(uri), make_folder()
        first = registry.publish("owls", folder, run="one")
        assert registry.publish("owls", folder, run="one", alias="latest") == first  # killed before the alias moved
        assert registry.resolve("owls").version == "v1"
        registry.publish("owls", folder, run="two", alias="latest")
        assert registry.publish("owls", folder, run="one", alias="latest") == first
        assert registry.resolve("owls").version == "v2"
        registry.promote("owls", "v1", "latest")  # somebody takes v2 back
        assert registry.publish("owls", folder, run="two", alias="latest").version == "v2"
        assert registry.resolve("owls").version == "v1"
        assert registry.versions("owls") == ("v1", "v2")

    def test_aliases_move_and_remember(self, uri, make_folder):
        registry, folder = Registry(uri), make_folder()
        registry.publish("owls", folder, run="one", alias="staging")
        registry.publish("owls", folder, run="two", alias="staging")
        assert registry.promote("owls", "staging", "production").version == "v2"
        registry.promote("owls", "v1", "production")
        aliases = registry.aliases("owls")
        assert {alias: record.version for alias, record in aliases.items()} == {"staging": "v2", "production": "v1"}
        assert [move.version for move in aliases["production"].earlier] == ["v2"]
        with pytest.raises(ConfigurationError, match="no version v3"):
            registry.promote("owls", "v3", "production")
        with pytest.raises(ConfigurationError, match="taken for a version"):
            registry.promote("owls", "v1", "v9")
        assert registry.aliases("owls") == aliases

    def test_what_does_not_exist_is_named_with_what_does(self, uri, make_folder):
        with pytest.raises(ConfigurationError, match=r"holds no adapters; .*ezigen adapters import"):
            Registry(uri).resolve("owls@v1")
        registry, folder = Registry(uri), make_folder()
        for run in ("one", "two"):
            registry.publish("owls", folder, run=run, alias="production")
        for reference, message in UNKNOWN:
            with pytest.raises(ConfigurationError, match=message):
                registry.resolve(reference)

    def test_publishers_at_the_same_moment_take_turns(self, uri, make_folder):
        runs = [["a", "b"], ["c", "shared"], ["d", "shared"]]
        printed = publish_in_processes(uri, make_folder(), runs)
        registry = Registry(uri)
        assert registry.versions("owls") == ("v1", "v2", "v3", "v4", "v5")
        made = {registry.get("owls", version).card.run: version for version in registry.versions("owls")}
        assert sorted(made) == ["a", "b", "c", "d", "shared"]
        assert [[made[run] for run in each] for each in runs] == printed
        assert registry.resolve("owls").version == "v5"

    def test_a_killed_publisher_leaves_no_version_and_its_files_to_nobody(self, uri, make_folder):
        registry, folder = Registry(uri), make_folder(0, num_extras=3000)
        registry.publish("owls", make_folder(1), alias="latest")
        command = [sys.executable, "-m", "tests.adapters.publisher", uri, "owls", str(folder), "latest", "big"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.stdin.write(b"go\n")
        process.stdin.flush()
        shelf, deadline = OutputFolder(f"{uri}/owls"), time.monotonic() + 60
        while not any(name.startswith("sheet") for name in shelf.list("v2")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert "card.json" not in shelf.list("v2"), "it was too fast to be killed half-way"
        assert registry.versions("owls") == ("v1",)
        assert registry.resolve("owls").version == "v1"
        assert registry.publish("owls", make_folder(2), run="next", alias="latest").version == "v2"
        assert sorted(files_below(OutputFolder(f"{uri}/owls/v2"))) == [
            "adapter.safetensors",
            "card.json",
            "sheet-0.jpg",
        ]
        assert registry.resolve("owls").card.training == {"steps": 2}

    def test_a_card_is_created_and_never_replaced(self, uri):
        folder = OutputFolder(uri)
        assert write_new(folder.filesystem, folder.path("v1/card.json"), b"first")
        assert not write_new(folder.filesystem, folder.path("v1/card.json"), b"second")
        assert files_below(folder) == {"v1/card.json": b"first"}

    def test_a_run_folder_on_the_same_store_can_be_published(self, uri, make_folder):
        source = OutputFolder(f"{uri}-run/final")
        for path in make_folder().iterdir():
            source.write(path.name, path.read_bytes())
        published = Registry(f"{uri}-registry").publish("owls", source)
        stored, given = files_below(OutputFolder(published.uri)), files_below(source)
        assert {name: stored[name] for name in given if name != "card.json"} == {
            name: data for name, data in given.items() if name != "card.json"
        }


class TestOnDisk(RegistryCases):
    @pytest.fixture
    def uri(self, tmp_path):
        return str(tmp_path / "adapters")

    def test_only_adapters_are_published(self, uri, make_folder, tmp_path):
        registry, folder = Registry(uri), make_folder()
        (folder / ".partial-1").write_bytes(b"left by a crash")
        assert registry.publish("owls", folder).card.files.keys() == {"sheet-0.jpg"}
        (folder / "card.json").unlink()
        with pytest.raises(ConfigurationError, match=r"card\.json is missing"):
            registry.publish("owls", folder)
        (folder / "adapter.safetensors").write_bytes(b"short")
        with pytest.raises(ConfigurationError, match="truncated"):
            registry.publish("owls", folder)
        with pytest.raises(ConfigurationError, match="no such folder"):
            registry.publish("owls", tmp_path / "nowhere")
        with pytest.raises(ConfigurationError, match=r"'\.\./owls': use lower-case"):
            registry.publish("../owls", folder)
        assert registry.versions("owls") == ("v1",)

    def test_a_registry_that_cannot_be_written_is_named(self, tmp_path, make_folder):
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigurationError, match=re.escape(f"adapters_uri {tmp_path}/file/adapters cannot")):
            Registry(str(tmp_path / "file" / "adapters")).publish("owls", make_folder())

    def test_damaged_records_say_what_to_do(self, uri, make_folder):
        registry = Registry(uri)
        registry.publish("owls", make_folder(), alias="latest")
        alias = Path(uri) / "owls/aliases/latest.json"
        alias.write_text("{}")
        with pytest.raises(ConfigurationError, match=r"latest\.json is not an alias file .*ezigen adapters promote"):
            registry.resolve("owls")
        alias.write_text('{"version": "../../elsewhere", "moved_at": ""}')
        with pytest.raises(ConfigurationError, match=r"'\.\./\.\./elsewhere' is no version"):
            registry.resolve("owls")
        alias.write_text("")  # a process died between making and filling the very first one
        registry.promote("owls", "v1", "latest")
        assert registry.resolve("owls").version == "v1"
        (Path(uri) / "owls/v1/card.json").unlink()
        registry.publish("owls", make_folder(1), run="again")
        (Path(uri) / "owls/v1").rename(Path(uri) / "owls/v5")
        with pytest.raises(ConfigurationError, match=r"the alias points to v1, which is gone"):
            registry.resolve("owls")


@pytest.mark.slow
class TestOnS3(RegistryCases):
    @pytest.fixture
    def uri(self, s3_folder):
        return f"{s3_folder}/adapters"

    def test_keys_may_come_from_a_block(self, uri, s3_server, make_folder, monkeypatch):
        for name in s3_server.environment:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        locations = Locations(storage_options=s3_server.storage_options)
        Registry(uri, locations).publish("owls", make_folder(), alias="latest")
        assert Registry(uri, locations).resolve("owls").version == "v1"
