"""How a bucket is connected to: credentials, the clients, the signer of listings. A part of ``library.py``.

State: none of its own. Rule: everything that it makes asks for credentials through ``BoundedCredentials``.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from obstore.store import S3Store

from manifest.credentials import FIRST_TIMEOUT_S, BoundedCredentials
from manifest.errors import ConfigurationError

if TYPE_CHECKING:
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import ObjectStore, S3Config, S3Credential

CONNECT_TIMEOUT_S = 2
CREDENTIALS_HELP = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run `aws configure` (boto3's usual chain)"
)
_REGION = "us-east-1"

ListingSigner = Callable[[str, str | None, bool, int], str]
"""(prefix, after, folders, seconds) → path and query; see ``Library.sign_listing``."""


def check_endpoint(endpoint: str) -> None:
    """Raise ConfigurationError for what is no endpoint."""
    parts = urllib.parse.urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise ConfigurationError(f"{endpoint!r} is no endpoint: expected http://host:port or https://host")


def target(url: str) -> str:
    """Path and query of a URL."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.path}?{parts.query}"


def connector(
    bucket: str, prefix: str, endpoint: str | None, region: str, credentials: BoundedCredentials[S3Credential]
) -> Callable[[int], ObjectStore]:
    """What makes the client of one rung."""
    allow_http = endpoint is not None and endpoint.startswith("http://")
    config: S3Config = {"region": region, "conditional_put": "etag"}
    if endpoint is not None:
        # This key alone: obstore lets the variable AWS_ENDPOINT_URL_S3 go before the key `endpoint`.
        config["aws_endpoint_url_s3"] = endpoint

    def connect(timeout_s: int) -> ObjectStore:
        return S3Store(
            bucket,
            prefix=prefix or None,
            config=config,
            client_options={
                "allow_http": allow_http,
                "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
                "timeout": timedelta(seconds=timeout_s),
            },
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
            credential_provider=credentials,
        )

    return connect


def listing_signer(
    bucket: str, prefix: str, endpoint: str | None, region: str, credentials: BoundedCredentials[S3Credential]
) -> ListingSigner:
    """What signs listings: obstore's own signer knows objects alone, so botocore does it.

    The parameters have one order, so that a cache which leaves the signature out of its key sees equal requests.
    """
    base = f"{(endpoint or f'https://s3.{region}.amazonaws.com').rstrip('/')}/{bucket}"
    top = f"{prefix}/" if prefix else ""

    def sign(below: str, after: str | None, folders: bool, expires_s: int) -> str:
        from botocore.auth import S3SigV4QueryAuth  # noqa: PLC0415  as in credentials_of
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415
        from botocore.credentials import Credentials  # noqa: PLC0415

        wanted = {"list-type": "2", "prefix": top + below}
        if folders:
            wanted["delimiter"] = "/"
        if after is not None:
            wanted["start-after"] = top + after
        who = credentials()
        request = AWSRequest("GET", base, params=wanted)
        keys = Credentials(who["access_key_id"], who["secret_access_key"], who.get("token"))
        S3SigV4QueryAuth(keys, "s3", region, expires=expires_s).add_auth(request)
        return target(str(request.url))

    return sign


def credentials_of(profile: str | None) -> tuple[BoundedCredentials[S3Credential], str]:
    """boto3's usual chain, or that of a profile, and the region that it is set to."""
    # boto3 takes a third of a second to import: only those who need it pay.
    import boto3  # noqa: PLC0415
    from botocore import exceptions  # noqa: PLC0415
    from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415

    def chain() -> Boto3CredentialProvider:
        return Boto3CredentialProvider(boto3.Session(profile_name=profile) if profile else None)

    try:
        provider = BoundedCredentials(chain, timeout_s=FIRST_TIMEOUT_S)()
    except (exceptions.BotoCoreError, ValueError, TimeoutError) as error:
        reason = "none were found" if isinstance(error, ValueError) else " ".join(str(error).split())
        raise ConfigurationError(f"no S3 credentials: {reason}; {CREDENTIALS_HELP}") from error
    passing = (exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.MetadataRetrievalError)
    return BoundedCredentials(provider, passing), provider.config.get("region") or _REGION
