"""The site cache of the settings: as a source of chunks, and as a nearer way to the library's metadata.

State: none. An HTTP cache has what the store has, a moment later; an appliance (``s3``) has copies of some chunks and
recipes, and is asked for nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cache.sources.central import CentralSource
from cache.sources.site import SiteCache, SiteSource
from manifest.errors import ConfigurationError
from manifest.library import Library
from manifest.way import CENTRAL, Way

if TYPE_CHECKING:
    from cache.sources.protocol import Source
    from daemon.config import Settings, SiteSettings


def open_site(settings: Settings, library: Library) -> SiteCache | Library | None:
    """What ``[site]`` names; None when there is no site cache. Asks nobody. Raises ConfigurationError."""
    site = settings.site
    if site.url is None:
        return None
    if site.kind == "s3":
        return open_appliance(site, library)
    return SiteCache(
        library, site.url, ca=site.ca, cert=site.cert, key=site.key, connect_timeout_s=site.connect_timeout_s
    )


def open_appliance(site: SiteSettings, library: Library) -> Library:
    """The copy of the library in an S3-compatible appliance. Raises ConfigurationError."""
    assert site.url is not None
    appliance = Library.open(
        site.url, endpoint=site.endpoint or library.endpoint, region=site.region, profile=site.profile
    )
    if (appliance.url, appliance.endpoint) == (library.url, library.endpoint):
        raise ConfigurationError(f"site.url is the library itself, {library.url}: name the appliance's bucket")
    return appliance


def as_source(site: SiteCache | Library) -> Source:
    """The site cache as a source of chunks and recipes."""
    return SiteSource(site) if isinstance(site, SiteCache) else CentralSource(site, name="site")


def as_way(site: SiteCache | Library | None) -> Way:
    """The way to the library's metadata: by an HTTP cache, and to the central store where that does not do."""
    return Way(site) if isinstance(site, SiteCache) else CENTRAL
