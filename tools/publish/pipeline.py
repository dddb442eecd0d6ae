"""Files in, digests and recipes out: each source is read once, cut, hashed and uploaded, several at a time.

State: the threads of one run. Readers read a file window by window into blocks, cut each window, hand the chunks to the
uploaders and hash the whole file; uploaders hash a chunk and put it. Rules: memory is what ``Blocks`` allows, however
large the files are; a file is finished when all its chunks are in the library and its source was found unchanged; the
first error ends the run, and nothing is started after it.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3

from manifest.digest import EMPTY_DIGEST, Digest
from manifest.errors import UserError
from manifest.recipe import Recipe
from tools.publish.blocks import BUDGET_BYTES, MIB, Block, Blocks, Stopped
from tools.publish.chunk import Cutter, choose
from tools.publish.source import Fingerprint, SourceReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tools.publish.upload import Uploader
    from tools.publish.walk import SourceFile

READERS = min(4, max(2, os.cpu_count() or 2))
UPLOADERS = 16
FOLDER_UPLOADERS = 8
"""For a ``file://`` library: enough to hide a file server's latency, few enough not to fight over a local disk."""
FOLDER_BUDGET_BYTES = 128 * MIB
"""Half of what a store over the network gets: with twice as much a publish to a local disk took as long (measured)."""
WINDOW_BYTES_MAX = 20 * MIB
"""A little above the largest chunk, so that a window always yields one."""
_JOIN_S = 15.0

for _budget_bytes in (BUDGET_BYTES, FOLDER_BUDGET_BYTES):
    assert _budget_bytes >= (READERS + 1) * WINDOW_BYTES_MAX, "every reader may hold a block while one gets its next"


class Progress(Protocol):
    """Told how many bytes of the sources are done. Called from several threads."""

    def advance(self, count: int = 1) -> None:
        """``count`` more bytes."""


@dataclass(frozen=True, slots=True)
class Finished:
    """One source, read to its end. ``recipe`` is None when the run only hashed.

    ``durable``: the fingerprint will tell every later change of the file.
    """

    item: SourceFile
    fingerprint: Fingerprint
    digest: Digest
    recipe: Recipe | None
    durable: bool


@dataclass(slots=True)
class _Job:
    """A file under way. ``open_parts`` counts the chunks not yet uploaded, and one for the reader itself."""

    item: SourceFile
    open_parts: int = 1
    chunks: list[tuple[bytes, int]] = field(default_factory=list)
    digest: Digest | None = None
    fingerprint: Fingerprint | None = None
    durable: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class _Part:
    """A chunk on its way to an uploader, which gives the block back."""

    job: _Job
    index: int
    block: Block
    offset: int
    length: int


_NO_DIGEST = b""


class Pipeline:
    """One run over some files. With ``uploader`` None files are only hashed."""

    def __init__(
        self,
        uploader: Uploader | None,
        progress: Progress,
        *,
        budget_bytes: int = BUDGET_BYTES,
        readers: int = READERS,
        uploaders: int = UPLOADERS,
    ) -> None:
        self._uploader = uploader
        self._progress = progress
        self._blocks = Blocks(budget_bytes)
        self._readers = readers
        self._uploaders = uploaders if uploader else 0
        self._parts: queue.SimpleQueue[_Part | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Finished | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()

    def run(self, files: Iterable[SourceFile]) -> Iterator[Finished]:
        """Work through ``files``; yields in the order of completion. Raises the first error, after stopping."""
        todo = _Shared(files)
        readers = [threading.Thread(target=self._read_all, args=(todo,), daemon=True) for _ in range(self._readers)]
        uploaders = [threading.Thread(target=self._upload_all, daemon=True) for _ in range(self._uploaders)]
        for thread in (*readers, *uploaders):
            thread.start()
        try:
            yield from self._collect(len(readers), uploaders)
        except BaseException:
            if self._uploader:
                self._uploader.stop()
            raise
        finally:
            self._stopped.set()
            self._blocks.stop()
            for _ in uploaders:
                self._parts.put(None)
            deadline = time.monotonic() + _JOIN_S
            for thread in (*readers, *uploaders):
                thread.join(max(0.0, deadline - time.monotonic()))

    def _collect(self, readers: int, uploaders: list[threading.Thread]) -> Iterator[Finished]:
        """Results until all readers and then all uploaders said that they are through."""
        running = readers
        while running:
            result = self._results.get()
            if isinstance(result, BaseException):
                raise result
            if result is not None:
                yield result
                continue
            running -= 1
            if running == 0 and uploaders:
                for _ in uploaders:
                    self._parts.put(None)
                running, uploaders = len(uploaders), []

    # ------------------------------------------------------------------ readers

    def _read_all(self, todo: _Shared) -> None:
        try:
            while not self._stopped.is_set() and (item := todo.next()) is not None:
                self._read(item)
            self._results.put(None)
        except Stopped:
            self._results.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, which raises it
            self._results.put(error)

    def _read(self, item: SourceFile) -> None:
        try:
            with SourceReader(item.source) as source:
                job = _Job(item)
                self._read_windows(source, job)
                source.finish()
                job.fingerprint, job.durable = source.fingerprint, source.durable
            self._part_done(job)
        except OSError as error:
            raise UserError(f"{item.source} cannot be read: {error.strerror}; nothing was published") from error

    def _read_windows(self, source: SourceReader, job: _Job) -> None:
        size = source.fingerprint.size
        if size == 0:
            job.digest = EMPTY_DIGEST
            return
        cutter = Cutter(choose(job.item.source, source.descriptor), size)
        whole = blake3()
        block, offset, left = self._blocks.get(min(size, WINDOW_BYTES_MAX)), 0, 0
        try:
            while True:
                length = min(len(block.view), left + size - offset)
                window = block.view[:length]
                source.fill(window[left:], offset)
                offset += length - left
                last = offset == size
                if self._uploader:
                    cut = self._hand_over(cutter, job, block, window, whole, last=last)
                else:
                    cut = length
                    whole.update(window[left:])
                    self._progress.advance(length - left)
                if last and len(job.chunks) == 1:
                    return  # the digest of the file is that of its only chunk
                if last:
                    job.digest = Digest(whole.digest())
                    return
                left = length - cut
                following = self._blocks.get(min(left + size - offset, WINDOW_BYTES_MAX))
                following.view[:left] = window[cut:]
                block.release()
                block = following
        finally:
            block.release()

    def _hand_over(
        self, cutter: Cutter, job: _Job, block: Block, window: memoryview, whole: blake3, *, last: bool
    ) -> int:
        """Give the certain chunks of a window to the uploaders, and each to ``whole``; how many bytes that were."""
        end = 0
        for offset, length in cutter.cut(window, last=last):
            with job.lock:
                index = len(job.chunks)
                job.chunks.append((_NO_DIGEST, length))
                job.open_parts += 1
            block.hold()
            self._parts.put(_Part(job, index, block, offset, length))
            end = offset + length
            if index or not (last and end == len(window)):  # not the only chunk of the file
                whole.update(window[offset:end])
        return end

    # ------------------------------------------------------------------ uploaders

    def _upload_all(self) -> None:
        try:
            while (part := self._parts.get()) is not None:
                try:
                    if not self._stopped.is_set():
                        self._upload(part)
                finally:
                    part.block.release()
            self._results.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, which raises it
            self._results.put(error)

    def _upload(self, part: _Part) -> None:
        assert self._uploader is not None
        data = part.block.view[part.offset : part.offset + part.length]
        digest = Digest.of(data)
        self._uploader.chunk(digest, data, failed=part.block.spoil)
        with part.job.lock:
            part.job.chunks[part.index] = (digest, part.length)
        self._progress.advance(part.length)
        self._part_done(part.job)

    def _part_done(self, job: _Job) -> None:
        with job.lock:
            job.open_parts -= 1
            if job.open_parts:
                return
        assert job.fingerprint is not None
        if job.digest is None:
            assert len(job.chunks) == 1
            job.digest = Digest(job.chunks[0][0])
        recipe = Recipe.of(job.chunks) if self._uploader else None
        self._results.put(Finished(job.item, job.fingerprint, job.digest, recipe, job.durable))


class _Shared:
    """An iterator that several threads take from."""

    def __init__(self, files: Iterable[SourceFile]) -> None:
        self._iterator = iter(files)
        self._lock = threading.Lock()

    def next(self) -> SourceFile | None:
        """The next file; None when there is none left."""
        with self._lock:
            return next(self._iterator, None)
