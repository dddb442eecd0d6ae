"""What is documented is what there is."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from cache.accounts import ShowStats
from cache.explain import Explained
from cache.metrics import CacheStats, FolderStats
from cache.sources.protocol import SourceStatus
from daemon import status
from manifest.way import WayStatus
from vfs.metrics import AheadStats

ROOT = Path(__file__).parent.parent.parent
_METRIC = re.compile(r"damfs_[a-z_]*[a-z]")


def sections(document: str) -> dict[str, set[str]]:
    """The first column of the tables, by heading."""
    found: dict[str, set[str]] = {}
    heading = ""
    for line in (ROOT / "docs" / document).read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| `"):
            found.setdefault(heading, set()).add(line.split("`")[1])
    return found


def fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_every_field_of_the_status_is_documented() -> None:
    documented = sections("STATUS.md")
    assert documented["Status of a mount"] == fields(status.Status)
    assert documented["A show"] == fields(status.ShowStatus) | fields(status.Stalled)
    assert documented["The cache"] == fields(CacheStats)
    assert documented["A cache folder"] == fields(FolderStats)
    assert documented["A show in the cache"] == fields(ShowStats)
    assert documented["Metadata by way of the site cache"] == fields(WayStatus)
    assert documented["What is fetched ahead"] == fields(AheadStats)
    assert documented["A source"] == fields(SourceStatus)


def test_every_field_of_an_explained_file_is_documented() -> None:
    """The others are looked at on a real mount (tests/mount/test_explain.py)."""
    assert fields(Explained) < sections("STATUS.md")["A file, explained"]


def declared_metrics() -> set[str]:
    """Every string in the packages' metrics modules that is a metric's name."""
    found = set()
    for path in [ROOT / package / "metrics.py" for package in ("cache", "cache/sources", "vfs", "daemon")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _METRIC.fullmatch(node.value):
                found.add(node.value)
    return found


def test_every_metric_is_documented() -> None:
    documented = set().union(*sections("METRICS.md").values())
    assert declared_metrics() - documented == set()


@pytest.mark.parametrize("name", ["damfs@.service", "damfs@mnt-dam.service"])
def test_systemd_accepts_the_unit(name: str, tmp_path: Path) -> None:
    unit = tmp_path / name
    unit.write_text((ROOT / "systemd/damfs@.service").read_text())
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
