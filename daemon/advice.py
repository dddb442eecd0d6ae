"""One sentence of advice for somebody who finds something slow: what is the matter, and what to do.

State: none; pure functions of what ``daemon/explain.py`` found. Rule: it says what is known, and guesses nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MB = 1_000_000


def advise(found: Mapping[str, Any]) -> str:
    """A sentence about what was found."""
    what = found.get("file") or found["folder"]
    name = {"file": "this file", "folder": "what lies in this folder", "sequence": "this sequence"}[found["kind"]]
    missing_bytes = what["size_bytes"] - what["here_bytes"]
    if found["kind"] != "file" and not what["files"]:
        return f"No file lies here; {what['folders']} folders do: ask about one of them."
    if what["size_bytes"] == 0:
        return "It is empty: nothing has to be fetched."
    if missing_bytes <= 0:
        return _here(found, what, name)
    share = f"{max(1, round(missing_bytes * 100 / what['size_bytes']))} % of {name} is not on this workstation"
    if found["offline_switched"]:
        return f"{share}, and nothing is fetched while it is switched offline: damfs offline off ends that."
    if found["sources_why_not"] is not None:
        return f"{share}, and no source answers ({found['sources_why_not']}): what is here is read as ever."
    if found["offline"]:
        return f"{share}, and the library does not answer ({found['offline_reason']}): what is here is read as ever."
    return f"{share}; {_coming(what)}{_from(found, missing_bytes)}. Fetch it before it is needed: {_prefetch(found)}"


def _here(found: Mapping[str, Any], what: Mapping[str, Any], name: str) -> str:
    if found["kind"] == "file" and what["why_daemon"] is not None and not what["small"]:
        return (
            f"All of {name} is on this workstation, and read through the daemon, which is slower than the disk: "
            f"{what['why_daemon']}."
        )
    return f"All of {name} is on this workstation: what is slow now is its disk, or the program that reads."


def _coming(what: Mapping[str, Any]) -> str:
    coming = what.get("coming")
    if not coming or not (coming["fetching"] or coming["queued"]):
        return ""
    if not coming["fetching"]:
        return f"it waits for its turn as {coming['priority']}, behind {coming['ahead']} other fetches; "
    return f"{coming['bytes'] / MB:.1f} MB of it are being fetched now as {coming['priority']}; "


def _from(found: Mapping[str, Any], missing_bytes: int) -> str:
    source = next((one for one in found["sources"] if one["breaker"] == "closed"), found["sources"][-1])
    rate = source["bytes_per_s"]
    if rate is None:
        return f"it comes from the source {source['name']}, of which nothing was fetched yet"
    seconds = missing_bytes / max(rate, 1.0)
    takes = f"about {seconds:.0f} s" if seconds >= 1 else "less than a second"
    return f"it comes from the source {source['name']} at {rate / MB:.1f} MB/s, which takes {takes}"


def _prefetch(found: Mapping[str, Any]) -> str:
    return f"damfs prefetch {found['show']}@{found['revision']}:{found['path']}"
