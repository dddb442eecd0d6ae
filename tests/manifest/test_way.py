"""A cache that is asked before the central store: never trusted, never in the way."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from manifest import layout, way
from manifest.errors import AccessDenied, DamfsError, FormatError, NotFound, Offline, Unavailable
from manifest.identity import add_show, list_shows
from manifest.log import Log
from manifest.way import Way, WayStatus
from tests.manifest.logs import SHOW, FaultyLibrary, Scribe, flipped, names

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from manifest.library import Library


class Cache(FaultyLibrary):
    """A cache in front of a library: counts, answers as told, and may be down or behind."""

    def __init__(self, inner: Library) -> None:
        super().__init__(inner, self._answer)
        self.asked: list[str] = []
        self.fault: Callable[[str, bytes | None], bytes | None] = lambda _, true: true
        self.listing: list[int] | None = None
        self.down: DamfsError | None = None

    def _answer(self, key: str, true: bytes | None) -> bytes | None:
        self.asked.append(key)
        if self.down is not None:
            raise self.down
        return self.fault(key, true)

    def list(self, prefix: str, *, after: str | None = None, timeout_s: float = 30.0):  # type: ignore[no-untyped-def]  # noqa: ANN201
        self.asked.append(prefix)
        if self.down is not None:
            raise self.down
        if self.listing is not None:
            return iter([(layout.log_key(SHOW, seq), 1) for seq in self.listing])
        return self.inner.list(prefix, after=after, timeout_s=timeout_s)

    def folders(self, prefix: str, *, timeout_s: float = 30.0) -> list[str]:  # type: ignore[valid-type]
        self.asked.append(prefix)
        if self.down is not None:
            raise self.down
        return self.inner.folders(prefix, timeout_s=timeout_s)


class Central(FaultyLibrary):
    """The central store, whose requests are counted; ``down``: it cannot be reached."""

    def __init__(self, inner: Library) -> None:
        super().__init__(inner, self._answer)
        self.asked: list[str] = []
        self.down = False

    def _answer(self, key: str, true: bytes | None) -> bytes | None:
        self.asked.append(key)
        if self.down:
            raise Unavailable("the central store is down")
        return true

    def list(self, prefix: str, *, after: str | None = None, timeout_s: float = 30.0):  # type: ignore[no-untyped-def]  # noqa: ANN201
        self._answer(prefix, None)
        return self.inner.list(prefix, after=after, timeout_s=timeout_s)

    def folders(self, prefix: str, *, timeout_s: float = 30.0) -> list[str]:  # type: ignore[valid-type]
        self._answer(prefix, None)
        return self.inner.folders(prefix, timeout_s=timeout_s)


class Site:
    """A show's log, a central store and a cache before it."""

    def __init__(self, library: Library, folder: Path) -> None:
        self.scribe = Scribe(library, folder)
        self.cache = Cache(library)
        self.central = Central(library)
        self.way = Way(self.cache)

    def show(self, **options: object):  # type: ignore[no-untyped-def]  # noqa: ANN201
        from manifest.show import Show

        scribe = self.scribe
        return Show.open(
            self.central, scribe.identity, scribe.trust, scribe.name, scribe.folder / "replica",
            way=self.way, **options)  # type: ignore[arg-type]  # fmt: skip


def status_of(asked: Way) -> WayStatus:
    status = asked.status()
    assert status is not None
    return status


@pytest.fixture
def site(file_library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(way, "OFF_S_MIN", 60.0)
    monkeypatch.setattr(way, "OFF_S_MAX", 60.0)
    return Site(file_library, tmp_path)


def test_a_follower_asks_the_cache_for_everything_and_the_store_for_nothing(site: Site) -> None:
    site.scribe.publish("a")
    with site.show() as show:
        assert show.follower.advance().head == 1
        site.scribe.publish("b")
        assert show.follower.advance().complete
        assert names(show) == ["a", "b"]
    assert not site.central.asked
    assert status_of(site.way).near_failures == 0


@pytest.mark.parametrize("error", [Unavailable("down"), AccessDenied("not you"), FormatError("too long")])
def test_a_cache_that_fails_is_passed_by_and_left_alone(
    site: Site, error: DamfsError, caplog: pytest.LogCaptureFixture
) -> None:
    site.scribe.publish("a")
    site.cache.down = error
    with site.show() as show:
        assert show.follower.advance().head == 1
        site.scribe.publish("b")
        assert show.follower.advance().head == 2
    assert len(site.cache.asked) == 1
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
    assert "metadata comes from the central store" in caplog.text
    assert status_of(site.way).last_error == str(error)


def test_a_cache_is_tried_again_after_a_while(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(way, "OFF_S_MIN", 0.0)
    site.scribe.publish("a")
    site.cache.down = Unavailable("down")
    with site.show() as show:
        show.follower.advance()
        site.cache.down = None
        site.central.asked.clear()
        site.scribe.publish("b")
        assert show.follower.advance().head == 2
    assert not site.central.asked


def test_a_damaged_entry_in_the_cache_is_read_again_from_the_store(site: Site) -> None:
    site.scribe.publish("a")
    site.cache.fault = lambda key, true: flipped(true) if true and "/log/" in key else true
    with site.show() as show:
        progress = show.follower.advance()
        assert (progress.head, progress.stalled) == (1, None)
    assert site.central.asked == [layout.log_key(SHOW, 1)]


def test_a_damaged_changeset_in_the_cache_is_read_from_the_store(site: Site) -> None:
    site.scribe.publish("a")
    site.cache.fault = lambda key, true: b"damaged" if "/changes/" in key else true
    with site.show() as show:
        assert show.follower.advance().head == 1
        assert names(show) == ["a"]
    assert [key for key in site.central.asked if "/changes/" in key]


def test_a_changeset_that_the_cache_has_not_got_is_read_from_the_store(site: Site) -> None:
    site.scribe.publish("a")
    site.cache.fault = lambda key, true: None if "/changes/" in key else true
    with site.show() as show:
        assert show.follower.advance().head == 1
    assert status_of(site.way).near_failures == 0  # it answered: it is late, not broken


def test_what_the_cache_does_not_know_yet_comes_with_the_next_look_or_at_once_for_who_wants_it(site: Site) -> None:
    site.scribe.publish("a")
    with site.show() as show:
        show.follower.advance()
        site.cache.listing = [1]
        site.cache.fault = lambda key, true: None if key == layout.log_key(SHOW, 2) else true
        site.scribe.publish("b")
        progress = show.follower.advance()
        assert (progress.head, progress.complete, progress.stalled) == (1, True, None)
        assert show.follower.advance(thorough=True).head == 2
        site.cache.listing = None


def test_the_shows_are_listed_by_way_of_the_cache(site: Site) -> None:
    add_show(site.central, "gemini")
    assert list_shows(site.central, way=site.way, fresh=False) == [SHOW, "gemini"]
    assert not site.central.asked
    site.cache.down = Unavailable("down")
    assert list_shows(site.central, way=site.way, fresh=False) == [SHOW, "gemini"]


def test_who_wants_fresh_news_asks_the_store_and_the_cache_only_while_that_is_away(site: Site) -> None:
    assert list_shows(site.central, way=site.way) == [SHOW]
    assert not site.cache.asked
    site.central.down = True
    assert list_shows(site.central, way=site.way) == [SHOW]
    assert site.cache.asked == ["shows/"]
    site.cache.down = Unavailable("the site cache is down")
    with pytest.raises(Unavailable, match="central"):
        list_shows(site.central, way=site.way)
    site.cache.asked.clear()
    with pytest.raises(Unavailable, match="central"):
        list_shows(site.central, way=site.way)
    assert not site.cache.asked  # it is left alone


def test_a_show_is_followed_while_only_the_site_cache_can_be_reached(site: Site) -> None:
    site.scribe.publish("a")
    site.central.down = True
    with site.show() as show:
        progress = show.follower.advance(thorough=True)
        assert (progress.head, progress.complete, progress.reachable) == (1, True, True)


def test_a_mount_that_is_switched_offline_asks_nobody_and_blames_nobody(site: Site) -> None:
    site.cache.down = Offline("somebody wants it so")
    for ask in (site.way.news, site.way.object, site.way.fresh):
        with pytest.raises(Offline):
            ask(lambda near, s: near.get("x", timeout_s=s), _not_asked, 5)
    assert status_of(site.way).near_failures == 0


def _not_asked(within_s: float) -> bytes:
    raise Offline(f"the library is not asked, in {within_s} s or ever")


def test_when_both_are_down_that_is_said(site: Site) -> None:
    site.scribe.publish("a")
    site.cache.down = Unavailable("the site cache is down")
    site.central.down = True
    with pytest.raises(Unavailable, match="central"):
        Log(site.central, SHOW, site.way).read_near(1)


def test_absence_by_way_of_the_cache_is_absence_of_an_entry(site: Site) -> None:
    assert Log(site.central, SHOW, site.way).read_near(1) is None
    assert not site.central.asked
    with pytest.raises(NotFound):
        site.way.news(lambda near, s: near.get("x", timeout_s=s), lambda _: b"", 5)
