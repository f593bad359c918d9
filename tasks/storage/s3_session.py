"""How S3 is talked to: with the store that was named, and with nobody else."""

from functools import partial
from types import SimpleNamespace
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession

_REDIRECTS = (301, 302, 303, 307, 308)
_OTHER_REGION = "x-amz-bucket-region"


class RedirectRefusedError(OSError):
    """A store answered with another address."""


class StraightSession(AIOHTTPSession):  # type: ignore[misc]
    """Follows no redirect. aiohttp would follow one to any address, that of a cloud's metadata service among them, and
    the body found there would be taken for the object's.

    That a bucket lies in another region is left to botocore, which builds the address of the region by itself.
    """

    async def send(self, request: Any) -> Any:
        """The answer to a request. Raises RedirectRefusedError."""
        response = await super().send(request)
        if response.status_code in _REDIRECTS and _OTHER_REGION not in response.headers:
            # botocore would ask for the bucket's region, get the same answer, and ask again.
            raise RedirectRefusedError(
                f"the store answers with a redirect ({response.status_code}), which is not followed; set its own "
                "address as endpoint"
            )
        return response

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        return SimpleNamespace(request=partial(session.request, allow_redirects=False))
