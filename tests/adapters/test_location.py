"""From a setting to a folder: registries, stores and copies of them on this machine."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ezigen.adapters import adapter_fingerprint
from ezigen.config import ConfigurationError, ModelConfig
from tasks.adapters import Registry, find_adapter, local_adapter, pin_adapter
from tasks.adapters.location import pin_model
from tasks.storage import OutputFolder


def store(folder: Path, uri: str) -> None:
    for path in folder.iterdir():
        OutputFolder(uri).write(path.name, path.read_bytes())


def test_settings_that_need_no_registry_are_as_before(make_folder, tmp_path, monkeypatch):
    folder = make_folder()
    assert local_adapter("none", "mini", "nowhere") is None
    assert local_adapter("auto", "mini", "nowhere").name == "adapter"
    assert local_adapter(str(folder), "sd", "nowhere") == folder
    assert local_adapter(folder.as_uri(), "sd", "nowhere") == folder
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "odd@name")
    assert local_adapter("./odd@name", "sd", "nowhere") == Path("odd@name")
    with pytest.raises(ConfigurationError, match="none is shipped for model sd"):
        local_adapter("auto", "sd", "nowhere")
    with pytest.raises(ConfigurationError, match=r"adapter owls: .*NAME@ALIAS or NAME@VERSION"):
        local_adapter("owls", "sd", "nowhere")


def test_a_local_registry_is_read_in_place_and_checked(make_folder, tmp_path, cache):
    uri = str(tmp_path / "adapters")
    published = Registry(uri).publish("owls", make_folder(), alias="latest")
    assert local_adapter("owls@latest", "tiny", uri) == Path(published.uri)
    assert not cache.exists()
    shutil.copy(make_folder(1) / "adapter.safetensors", published.uri)
    with pytest.raises(ConfigurationError, match=r"adapter\.safetensors does not have the checksum in card\.json"):
        local_adapter("owls@latest", "tiny", uri)


def test_an_alias_is_pinned_to_what_it_means_now(make_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry = Registry("adapters")
    registry.publish("owls", make_folder(), run="one", alias="latest")
    model = pin_model(ModelConfig(model="tiny", adapter="owls@latest", adapters_uri="adapters"))
    registry.publish("owls", make_folder(), run="two", alias="latest")
    assert (model.adapter, model.adapters_uri) == ("owls@v1", str(tmp_path / "adapters"))
    assert pin_model(model) == model
    assert pin_adapter("owls@latest", "adapters") == "owls@v2"
    assert find_adapter("owls@v1", "adapters") == str(tmp_path / "adapters/owls/v1")
    for setting in ("auto", "none", "adapters/owls/v1"):
        assert pin_adapter(setting, "nowhere") == setting


@pytest.mark.slow
class TestOnS3:
    def test_a_version_is_fetched_once_whoever_asks(self, s3_folder, make_folder, cache):
        folder = make_folder()
        published = Registry(s3_folder).publish("owls", folder, run="one", alias="latest")
        found = []
        threads = [
            threading.Thread(target=lambda: found.append(local_adapter("owls@latest", "tiny", s3_folder)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (copy,) = set(found)
        assert len(found) == 4
        assert copy.parent == cache
        assert adapter_fingerprint(str(copy)) == adapter_fingerprint(str(folder))
        assert [path.name for path in cache.iterdir() if path.is_dir()] == [copy.name]
        before = (copy / "adapter.safetensors").stat()
        assert local_adapter("owls@v1", "tiny", s3_folder) == copy
        assert local_adapter(published.uri, "tiny", "nowhere") == copy
        assert (copy / "adapter.safetensors").stat().st_ino == before.st_ino, "it was fetched again"

    def test_a_damaged_copy_is_fetched_again_and_a_damaged_version_refused(self, s3_folder, make_folder, cache):
        published = Registry(s3_folder).publish("owls", make_folder(), alias="latest")
        copy = local_adapter("owls@latest", "tiny", s3_folder)
        good = (copy / "adapter.safetensors").read_bytes()
        (copy / "adapter.safetensors").write_bytes(good[:-1] + b"?")
        assert local_adapter("owls@latest", "tiny", s3_folder) == copy
        assert (copy / "adapter.safetensors").read_bytes() == good
        shutil.rmtree(copy)
        (cache / f".partial-{copy.name}").mkdir()  # what a killed process left
        OutputFolder(published.uri).write("adapter.safetensors", good[:-1] + b"?")
        with pytest.raises(ConfigurationError, match="does not have the checksum"):
            local_adapter("owls@latest", "tiny", s3_folder)
        assert not [path for path in cache.iterdir() if path.is_dir()]

    def test_folders_that_were_never_published_are_fetched_when_they_change(self, s3_folder, make_folder):
        one, two = make_folder(1), make_folder(2)
        store(one, f"{s3_folder}/final")
        first = local_adapter(f"{s3_folder}/final", "tiny", "nowhere")
        assert local_adapter(f"{s3_folder}/final", "tiny", "nowhere") == first
        assert adapter_fingerprint(str(first)) == adapter_fingerprint(str(one))
        store(two, f"{s3_folder}/final")
        second = local_adapter(f"{s3_folder}/final", "tiny", "nowhere")
        assert adapter_fingerprint(str(second)) == adapter_fingerprint(str(two)) != adapter_fingerprint(str(one))
        with pytest.raises(ConfigurationError, match=r"nothing/there: no adapter\.safetensors with card\.json"):
            local_adapter(f"{s3_folder}/nothing/there", "tiny", "nowhere")

    def test_planning_with_a_stored_adapter_needs_no_torch(self, s3_folder, make_folder):
        Registry(s3_folder).publish("owls", make_folder(), alias="latest")
        code = f"""
import sys
from tasks.adapters import local_adapter, pin_adapter
print(local_adapter(pin_adapter("owls@latest", {s3_folder!r}), "tiny", {s3_folder!r}))
assert not {{"torch", "ray", "prefect", "diffusers"}} & set(sys.modules)
"""
        subprocess.run([sys.executable, "-c", code], check=True)
