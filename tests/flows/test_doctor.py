"""`ezigen doctor`: what is wrong is found, and a remedy is named."""

import socket

import pytest
from packaging.requirements import Requirement
from prefect.settings import PREFECT_API_URL, temporary_settings

from ezigen.config import ModelConfig
from flows import doctor
from flows.doctor import Finding, examine


def only(findings) -> Finding:
    (finding,) = findings
    return finding


def test_the_installed_versions_are_the_constrained_ones():
    assert [finding.verdict for finding in doctor.check_versions()][:2] == ["good", "good"]


def test_a_wrong_version_names_both(monkeypatch):
    wanted = [Requirement("prefect==1.0"), Requirement("no-such-package>=2")]
    monkeypatch.setattr(doctor, "_constraints", lambda: wanted)
    finding = next(f for f in doctor.check_versions() if f.subject == "packages")
    assert finding.verdict == "bad"
    assert "prefect is 3." in finding.detail
    assert "==1.0" in finding.detail
    assert "no-such-package is missing" in finding.detail
    assert "make setup" in finding.remedy


def test_a_server_that_does_not_answer():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url}):
            finding = only(doctor.check_prefect())
    assert finding.verdict == "bad"
    assert url in finding.detail
    assert "prefect server start" in finding.remedy


def test_a_server_that_answers(reporting_here):
    assert only(doctor.check_prefect()).verdict == "good"


def test_storage(tmp_path):
    assert only(doctor.check_storage(str(tmp_path / "new"))).verdict == "good"
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    finding = only(doctor.check_storage(str(tmp_path / "file" / "below")))
    assert finding.verdict == "bad"
    assert "permissions" in finding.remedy


@pytest.mark.parametrize("model", ["nowhere/at/all", "mini"])
def test_one_bad_finding_is_a_bad_end_and_the_others_are_told(monkeypatch, capsys, model):
    monkeypatch.setattr(doctor, "check_ray", lambda _address: iter([Finding("good", "ray", "starts")]))
    assert examine(address="local", model=ModelConfig(model=model), storage=None) is (model == "mini")
    printed = capsys.readouterr().out
    assert ("no such folder" in printed) is (model != "mini")
    assert "starts" in printed
    assert "cores" in printed
