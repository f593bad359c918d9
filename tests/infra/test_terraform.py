"""The bucket and its roles: nothing is named that is not declared, and nobody may do more than a run needs."""

import re
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml

from tests.infra.built import INFRA

FOLDER = INFRA / "terraform"
RUN_ACTIONS = {
    "s3:ListBucket",
    "s3:GetObject",
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
    "kms:Decrypt",
    "kms:GenerateDataKey",
}
READER_ACTIONS = {"s3:ListBucket", "s3:GetObject", "kms:Decrypt"}


def plain(value: Any) -> Any:
    """The parser's trees without its marks: names and words lose their quotes, expressions stay `${...}`."""
    match value:
        case dict():
            marks = ("__is_block__", "__comments__", "__inline_comments__")
            return {key.strip('"'): plain(part) for key, part in value.items() if key not in marks}
        case list():
            return [plain(part) for part in value]
        case str():
            return value.strip('"')
        case _:
            return value


def parse(folder: Path) -> dict[str, dict[str, Any]]:
    """Every block of a folder by its address: `aws_s3_bucket.this`, `data.aws_region.current`, `var.bucket`, ..."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.tf")):
        for kind, blocks in plain(hcl2.loads(path.read_text("utf-8"))).items():
            for block in blocks:
                match kind:
                    case "resource" | "data":
                        ((resource, named),) = block.items()
                        ((name, body),) = named.items()
                        found[f"{'data.' if kind == 'data' else ''}{resource}.{name}"] = body
                    case "variable" | "output":
                        ((name, body),) = block.items()
                        found[f"{'var' if kind == 'variable' else kind}.{name}"] = body
                    case "locals":
                        found |= {f"local.{name}": value for name, value in block.items()}
                    case _:
                        found[kind] = block
    return found


@pytest.fixture(scope="module")
def blocks() -> dict[str, Any]:
    return parse(FOLDER)


def references(folder: Path) -> set[str]:
    """What the text refers to, as addresses. Words in strings that are no template do not look like any of these."""
    text = "\n".join(path.read_text("utf-8") for path in folder.glob("*.tf"))
    text = re.sub(r"#[^\n]*", "", text)
    return set(re.findall(r"(?<![\w.])((?:data\.)?aws_\w+\.\w+|var\.\w+|local\.\w+)", text))


def statements(blocks: dict[str, Any], name: str) -> dict[str, Any]:
    return {s["sid"]: s for s in blocks[f"data.aws_iam_policy_document.{name}"]["statement"]}


def actions(blocks: dict[str, Any], name: str) -> set[str]:
    return {action for s in statements(blocks, name).values() for action in s["actions"]}


def test_what_is_referred_to_is_declared_and_what_is_declared_is_used(blocks):
    used = references(FOLDER)
    assert len(used) > 15
    assert used - blocks.keys() == set()
    assert {address for address in blocks if address.startswith(("var.", "local."))} - used == set()


def test_a_reference_to_nothing_is_found(tmp_path):
    (tmp_path / "x.tf").write_text('resource "aws_s3_bucket" "a" {\n  bucket = "${var.nam}-${aws_s3_bucket.b.id}"\n}\n')
    assert references(tmp_path) - parse(tmp_path).keys() == {"var.nam", "aws_s3_bucket.b"}


def test_versions_are_bounded(blocks):
    terraform = blocks["terraform"]
    assert re.fullmatch(r">= \d+\.\d+\.\d+, < \d+\.\d+\.\d+", terraform["required_version"])
    for provider in terraform["required_providers"]:
        for given in provider.values():
            assert given["version"].startswith("~> ")


def test_the_bucket_is_private_encrypted_and_versioned(blocks):
    public = blocks["aws_s3_bucket_public_access_block.this"]
    flags = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
    assert [public[flag] for flag in flags] == [True] * 4
    (versioning,) = blocks["aws_s3_bucket_versioning.this"]["versioning_configuration"]
    assert versioning["status"] == "Enabled"
    (rule,) = blocks["aws_s3_bucket_server_side_encryption_configuration.this"]["rule"]
    (default,) = rule["apply_server_side_encryption_by_default"]
    assert (default["sse_algorithm"], default["kms_master_key_id"]) == ("aws:kms", "${aws_kms_key.bucket.arn}")
    assert rule["bucket_key_enabled"] is True
    assert blocks["aws_kms_key.bucket"]["enable_key_rotation"] is True
    (ownership,) = blocks["aws_s3_bucket_ownership_controls.this"]["rule"]
    assert ownership["object_ownership"] == "BucketOwnerEnforced"
    (lifecycle,) = blocks["aws_s3_bucket.this"]["lifecycle"]
    assert lifecycle["prevent_destroy"] is True


def test_unfinished_uploads_and_old_versions_go_away(blocks):
    rules = {rule["id"]: rule for rule in blocks["aws_s3_bucket_lifecycle_configuration.this"]["rule"]}
    assert {rule["status"] for rule in rules.values()} == {"Enabled"}
    (abort,) = rules["unfinished-uploads"]["abort_incomplete_multipart_upload"]
    assert 1 <= abort["days_after_initiation"] <= 7
    (expiry,) = rules["old-versions"]["noncurrent_version_expiration"]
    assert expiry["noncurrent_days"] == "${var.noncurrent_days}"
    # Nothing that is current ever expires by itself.
    for rule in rules.values():
        for expiration in rule.get("expiration", []):
            assert expiration == {"expired_object_delete_marker": True}


def test_connections_without_encryption_are_refused(blocks):
    deny = statements(blocks, "bucket")["OnlyEncryptedConnections"]
    assert (deny["effect"], deny["actions"]) == ("Deny", ["s3:*"])
    (condition,) = deny["condition"]
    assert (condition["variable"], condition["values"]) == ("aws:SecureTransport", ["false"])


def test_roles_may_do_what_the_pipeline_does_and_no_more(blocks):
    assert actions(blocks, "runs") == RUN_ACTIONS
    assert actions(blocks, "readers") == READER_ACTIONS
    for name in ("runs", "readers"):
        for statement in statements(blocks, name).values():
            assert "effect" not in statement
            assert statement["resources"] not in ("*", ["*"])
            assert not any("*" in action for action in statement["actions"])


def test_runs_write_only_below_the_prefixes_for_it(blocks):
    allowed = statements(blocks, "runs")
    assert "local.write_prefixes" in allowed["Write"]["resources"]
    assert "local.read_prefixes" not in allowed["Write"]["resources"]
    assert set(blocks["local.read_prefixes"]) & set(blocks["local.write_prefixes"]) == set()
    (listed,) = allowed["List"]["condition"]
    assert listed["variable"] == "s3:prefix"
    (key,) = allowed["Key"]["condition"]
    assert key["variable"] == "kms:ViaService"


def test_only_the_service_accounts_of_runs_get_their_role(blocks):
    (trust,) = blocks["data.aws_iam_policy_document.runs_trust"]["statement"]
    conditions = {c["variable"].rpartition(":")[2]: c for c in trust["condition"]}
    assert {c["test"] for c in conditions.values()} == {"StringEquals"}
    assert "var.namespace" in conditions["sub"]["values"]
    assert "var.service_accounts" in conditions["sub"]["values"]
    annotated = list(yaml.safe_load_all((INFRA / "kubernetes/overlays/gpu/service-accounts.yaml").read_text("utf-8")))
    assert {account["metadata"]["name"] for account in annotated} == set(blocks["var.service_accounts"]["default"])


def test_the_prefixes_are_those_of_the_deployments(blocks):
    """A deployment whose output the role may not write fails at night, not here, unless it is looked for."""
    text = (INFRA / "prefect.yaml").read_text("utf-8")
    deployments = yaml.safe_load(text)["deployments"]
    written, read = set(), set()
    for deployment in deployments:
        for name, value in deployment["parameters"]["inputs"].items():
            if isinstance(value, str) and "$EZIGEN_ROOT_URI" in value:
                prefix = value.split("/")[1]
                (written if name in {"output_uri", "root_uri", "adapters_uri"} else read).add(prefix)
    assert written == set(blocks["local.write_prefixes"])
    assert read <= {*blocks["local.read_prefixes"], *blocks["local.write_prefixes"]}
    assert {"catalogs", "data"} <= read
