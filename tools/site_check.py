"""Whether a running site cache does what it must (docs/SITE-CACHE.md), found out by asking it.

State: none. Rules: nothing is written to the library. What is asked for is the absence of a log entry of a show that
nobody has (its name is random), which needs no content, and the oldest entry of the first show, if there is one. One
check may be impossible to make from here (``ok`` None); a check that failed says what to do.
"""

from __future__ import annotations

import datetime
import email.utils
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manifest import layout
from manifest.entry import ENVELOPE_BYTES_MAX
from manifest.errors import AccessDenied, ConfigurationError, DamfsError, IntegrityError, NotFound, Unavailable
from manifest.identity import list_shows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cache.sources.site import Reply, SiteCache
    from manifest.library import Library

TIMEOUT_S = 10.0
STATUS = "x-cache-status"
ABSENT_S_MAX = 2.0
"""An absence is known for this second and the next."""
POLL_S = 0.2
SKEW_S = 60.0
SKEW_S_MAX = 900.0
"""S3 refuses requests that are dated so far from its own clock."""
CERTIFICATE_DAYS = 14
_HELP = "compare its configuration with what `damfs site setup` writes"


@dataclass(frozen=True, slots=True)
class Finding:
    """How one check went; ``ok`` None: it cannot be told from here. ``error`` is set when it failed."""

    check: str
    message: str
    error: DamfsError | None = None
    told: bool = True

    @property
    def ok(self) -> bool | None:
        return self.error is None if self.told else None


class _NotTold(Exception):
    """It cannot be found out from here."""


def checks(site: SiteCache, library: Library) -> Iterator[Finding]:
    """Each check in turn; none but the first is made when the site cache is not reachable."""
    asked = _Asked(site, library)
    steps: list[tuple[str, Callable[[], str]]] = [
        ("reachable", asked.reachable),
        ("library", asked.library_is_ours),
        ("bytes", asked.bytes_are_the_same),
        ("caches", asked.caches),
        ("key", asked.signature_is_left_out),
        ("absence", asked.absence_is_forgotten),
        ("strangers", asked.strangers_are_refused),
        ("methods", asked.writes_are_refused),
        ("elsewhere", asked.elsewhere_is_refused),
        ("tls", asked.certificate_is_good),
        ("clock", asked.clocks_agree),
    ]
    for name, step in steps:
        try:
            yield Finding(name, step())
        except _NotTold as reason:
            yield Finding(name, str(reason), told=False)
        except DamfsError as error:
            yield Finding(name, str(error), error)
            if name == "reachable":
                return


class _Asked:
    """What was asked so far. The absent entry has a name of its own, so nobody else has it in the cache."""

    def __init__(self, site: SiteCache, library: Library) -> None:
        self._site = site
        self._library = library
        self._absent = layout.log_key(f"none-{secrets.token_hex(8)}", secrets.randbelow(10**15))
        self._first: Reply | None = None
        self._first_at = 0.0

    def reachable(self) -> str:
        begun = time.monotonic()
        self._first = self._get(self._absent)
        self._first_at = time.monotonic()
        return f"{self._site.url} answers in {1000 * (time.monotonic() - begun):.0f} ms"

    def library_is_ours(self) -> str:
        reply = self._known()
        if reply.status == 404 and reply.code == "NoSuchKey":
            return f"passes signed requests on to {self._library.url}"
        if reply.code in ("SignatureDoesNotMatch", "AccessDenied", "InvalidAccessKeyId"):
            raise ConfigurationError(
                f"the store, asked by way of it, answered {reply.status} {reply.code}: it must be asked in the name "
                f"that signatures are for, {self._library.sign_url('damfs.json', expires_s=60).split('/')[2]}"
            )
        if reply.status in (401, 403) and not reply.code:
            raise AccessDenied(f"it answered {reply.status}: it does not let this machine in, or not to this library")
        if reply.status >= 500:
            raise Unavailable(f"it answered {reply.status}: it does not reach the store")
        raise ConfigurationError(f"it answered {reply.status} {reply.code} for a missing object: {_HELP}")

    def bytes_are_the_same(self) -> str:
        for show in list_shows(self._library, timeout_s=TIMEOUT_S):
            key = layout.log_key(show, 1)
            with suppress(NotFound):
                ours = self._library.get(key, timeout_s=TIMEOUT_S, bytes_max=ENVELOPE_BYTES_MAX)
                if self._site.get(key, timeout_s=TIMEOUT_S, bytes_max=ENVELOPE_BYTES_MAX) != ours:
                    raise IntegrityError(f"{key} has other bytes there than in the store: empty its cache")
                return f"{key} is what the store has"
        raise _NotTold("nothing was published to this library yet")

    def caches(self) -> str:
        found = self._cached(self._get(self._absent), "the second request for one object")
        return f"the second request is a {found}"

    def signature_is_left_out(self) -> str:
        self._cached(self._get(self._absent, expires_s=1801), "a request with another signature")
        return "a request with another signature is answered from the cache"

    def absence_is_forgotten(self) -> str:
        """The end of a log must be seen again soon: an answer from the cache is at most two seconds old."""
        self._require_status(self._known())
        until = time.monotonic() + 2 * ABSENT_S_MAX
        while self._get(self._absent).headers.get(STATUS) == "HIT":
            if time.monotonic() > until:
                raise ConfigurationError(
                    f"that an object is missing is still answered from its cache after {2 * ABSENT_S_MAX:g} s: new "
                    "revisions would come late; keep a 404 for one second"
                )
            time.sleep(POLL_S)
        return f"that an object is missing is asked anew after {ABSENT_S_MAX:g} s at most"

    def strangers_are_refused(self) -> str:
        if not self._site.shows_certificate:
            raise _NotTold("by address, if at all: ask it from a machine that must be refused")
        try:
            reply = self._site.without_certificate().ask(self._target(self._absent), TIMEOUT_S)
        except Unavailable as error:
            return f"without a certificate there is no answer ({error})"
        if reply.status in (400, 401, 403):
            return f"without a certificate it answers {reply.status}"
        raise ConfigurationError(
            f"it answers {reply.status} to who shows no certificate: everybody may read what it has cached; {_HELP}"
        )

    def writes_are_refused(self) -> str:
        for method in ("PUT", "DELETE", "POST"):
            self._refused(self._site.ask(self._target(self._absent), TIMEOUT_S, method=method), method)
        return "PUT, POST and DELETE are refused by itself"

    def elsewhere_is_refused(self) -> str:
        target = self._target(self._absent)
        self._refused(self._site.ask(target.partition("?")[0], TIMEOUT_S), "a request that is not signed")
        self._refused(self._site.ask("/another-bucket/key?" + target.partition("?")[2], TIMEOUT_S), "another bucket")
        return "requests that are not signed, and other buckets, are refused by itself"

    def certificate_is_good(self) -> str:
        if not self._site.url.startswith("https:"):
            raise _NotTold("it speaks plain HTTP: who can listen on the network can read what is fetched")
        protocol, ends = self._site.certificate(TIMEOUT_S)
        left = ends - datetime.datetime.now(datetime.UTC)
        if left.days < CERTIFICATE_DAYS:
            raise ConfigurationError(f"its certificate ends on {ends:%Y-%m-%d}: renew it")
        return f"{protocol}, its certificate ends on {ends:%Y-%m-%d}"

    def clocks_agree(self) -> str:
        date = self._known().headers.get("date")
        if date is None:
            raise _NotTold("it does not say what time it is")
        try:
            theirs = email.utils.parsedate_to_datetime(date).timestamp()
        except ValueError as error:
            raise ConfigurationError(f"it says that it is {date!r}, which is no time") from error
        skew_s = theirs - (time.time() - (time.monotonic() - self._first_at))
        if abs(skew_s) > SKEW_S:
            raise ConfigurationError(
                f"its clock and this machine's are {abs(skew_s):.0f} s apart: a store refuses signatures that are "
                f"{SKEW_S_MAX:.0f} s off; set the clocks"
            )
        return f"its clock and this machine's agree within {max(1.0, abs(skew_s)):.0f} s"

    # -- inside

    def _target(self, key: str, expires_s: int = 1800) -> str:
        return self._library.sign(key, expires_s=expires_s)

    def _get(self, key: str, expires_s: int = 1800) -> Reply:
        return self._site.ask(self._target(key, expires_s), TIMEOUT_S, bytes_max=ENVELOPE_BYTES_MAX)

    def _known(self) -> Reply:
        assert self._first is not None, "reachable comes first"
        return self._first

    def _cached(self, reply: Reply, what: str) -> str:
        self._require_status(reply)
        status = reply.headers[STATUS]
        if status not in ("HIT", "STALE", "UPDATING"):
            raise ConfigurationError(f"{what} was not answered from its cache ({status}): {_HELP}")
        return status

    def _require_status(self, reply: Reply) -> None:
        if STATUS not in reply.headers:
            raise ConfigurationError(f"it does not say what it had cached (X-Cache-Status is missing): {_HELP}")

    def _refused(self, reply: Reply, what: str) -> None:
        if reply.code or (STATUS in reply.headers and reply.headers[STATUS] != ""):
            raise ConfigurationError(f"{what} was passed on ({reply.status} {reply.code}) and not refused: {_HELP}")
        if reply.status not in (400, 401, 403, 404, 405, 501):
            raise ConfigurationError(f"{what} was answered with {reply.status} and not refused: {_HELP}")
