"""The Prefect block with an S3 store's address and keys, so that they stand neither in parameters nor in files."""

from typing import Any

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from ezigen.config import ConfigurationError

BLOCK_TYPE = "ezigen-s3"


class EzigenS3(Block):
    """An S3 store by name. A flow gets `ezigen-s3/NAME` as parameter and reads the secrets when it runs."""

    _block_type_name = "EZIGen S3"
    _block_type_slug = BLOCK_TYPE
    _description = "Endpoint and keys of an S3 store, for the catalogs, pictures and outputs of EZIGen flows."
    _logo_url = None

    endpoint_url: str = Field(
        default="", description="Address of the store, such as http://minio:9000; empty for Amazon's."
    )
    region: str = Field(default="", description="Region of the buckets; empty leaves it to AWS_REGION.")
    access_key_id: str = Field(default="", description="Empty leaves the keys to the standard AWS variables and roles.")
    secret_access_key: SecretStr = Field(default=SecretStr(""), description="The secret that belongs to the key.")
    session_token: SecretStr = Field(default=SecretStr(""), description="Only for temporary keys.")

    def storage_options(self) -> dict[str, Any]:
        """What `tasks.storage.Locations` takes, secrets in clear: never logged, never stored, not a parameter."""
        options = {
            "endpoint_url": self.endpoint_url,
            "region": self.region,
            "key": self.access_key_id,
            "secret": self.secret_access_key.get_secret_value(),
            "token": self.session_token.get_secret_value(),
        }
        return {name: value for name, value in options.items() if value}


def load_storage_options(block_name: str) -> dict[str, Any]:
    """The options of the block `NAME` or `ezigen-s3/NAME`; none for an empty name.

    Raises ConfigurationError if there is no such block.
    """
    if not block_name:
        return {}
    name = block_name.removeprefix(f"{BLOCK_TYPE}/")
    try:
        block = EzigenS3.load(name)
    except ValueError as error:
        raise ConfigurationError(
            f"inputs.storage_block: there is no block {BLOCK_TYPE}/{name}. Create it under Blocks in Prefect's pages, "
            "after `prefect block register -m flows.storage_block`."
        ) from error
    if not isinstance(block, EzigenS3):
        raise ConfigurationError(f"inputs.storage_block: {BLOCK_TYPE}/{name} is a {type(block).__name__}.")
    return block.storage_options()
