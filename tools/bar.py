"""What a progress bar looks like: the columns, in Rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task


def make_bar(console: Console, unit: str) -> Progress:
    """A bar that vanishes at its end; ``unit`` is "bytes" or the plural of what is counted."""
    return Progress(*_columns(unit), console=console, transient=True)


class _RateColumn(ProgressColumn):
    """Things a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self._unit}/s", style="progress.data.speed")


def _columns(unit: str) -> list[ProgressColumn]:
    counts: list[ProgressColumn] = (
        [DownloadColumn(binary_units=True), TransferSpeedColumn()]
        if unit == "bytes"
        else [MofNCompleteColumn(), TextColumn(unit, markup=False), _RateColumn(unit)]
    )
    text = TextColumn("{task.description}", markup=False)
    return [text, BarColumn(), *counts, TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn()]
