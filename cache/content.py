"""The state of a content that is open: what is present, and in which file.

One ``Content`` for each open (tenant, content id), however many handles; it goes when nobody refers to it. About one
kilobyte, the recipe (44 bytes a chunk) and one bit a chunk. Touched on the event loop only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blake3 import blake3

from cache.index import ObjectRow
from cache.small import SMALL_BYTES_MAX
from manifest.digest import Digest
from manifest.errors import IntegrityError

if TYPE_CHECKING:
    import trio

    from cache.files import OpenFile
    from manifest.recipe import Recipe

Key = tuple[str, bytes]


class Prefix:
    """The digest so far: ``hasher`` has read the first ``size_bytes`` of a file, up to chunk ``chunks`` it may go on.

    Invariant: ``size_bytes`` is at most the offset of chunk ``chunks``, and all chunks before that are present.
    """

    __slots__ = ("chunks", "hasher", "size_bytes")

    def __init__(self) -> None:
        self.hasher = blake3()
        self.size_bytes = 0
        self.chunks = 0


def require_size(recipe: Recipe, size: int, hint: str) -> None:
    """Raise IntegrityError when the chunks of ``recipe`` are not the ``size`` bytes that the manifest says."""
    if recipe.size != size:
        raise IntegrityError(
            f"{hint or recipe.content}: its recipe describes {recipe.size} bytes, the manifest says {size}: publish "
            "the file again"
        )


class Content:
    """One open content.

    Invariant, **what makes a present bit true**: bit i of ``present`` is set if and only if all bytes of chunk i,
    after they were verified against the recipe, were written to ``file`` at their own offset by this process, or a
    committed row says so of this very file (and such a row was written after an fdatasync). Whoever replaces
    ``file`` clears ``present``. Whoever writes to ``file`` writes where no bit is set. So ``row()`` may be committed
    after an fdatasync that began after it was taken, and never otherwise. ``epoch`` changes whenever what was believed
    of ``file`` is believed no more: who has waited for something compares it before anything is concluded.
    ``charge`` is what the content counts for in the capacity, ``claimed_charge`` the part that its row says.

    ``whole`` is the digest of all of ``file``, once it has been read with every chunk present; ``prefix`` is on the way
    there. ``settled``: a committed row says all of that. ``claims`` are the digests that those who opened it were
    told: two files of two publishers can have one content and two claims. ``refs`` counts handles, reads, stores and
    whatever else needs the state, ``lent`` the handles that were given ``file`` for the kernel to read: while there
    are any it stays the file. ``group`` is what it is used together with, for the policy of eviction.
    ``doubted``: it is believed no more and stays nevertheless; right bytes are written over what it holds
    (``mend.py``). ``registered``: see ``opening.py``. ``storing``: the chunks that are being stored (``keep.py``).
    """

    __slots__ = (
        "charge", "chunks", "claimed_charge", "claims", "content", "doubted", "epoch", "file", "group", "hint", "lent",
        "making", "mends", "prefix", "present", "present_bytes", "present_count", "ready", "recipe", "refs",
        "registered", "row_id", "settled", "size", "storing", "tenant", "whole",
    )  # fmt: skip

    def __init__(
        self, tenant: str, content: Digest, size: int, recipe: Recipe | None, hint: str, group: int = 0
    ) -> None:
        self.tenant = tenant
        self.content = content
        self.size = size
        self.claims: set[Digest] = set()
        self.recipe = recipe
        self.hint = hint
        self.group = group
        self.refs = 0
        self.ready: trio.Event | None = None
        self.making: trio.Lock | None = None
        self.storing: dict[int, trio.Event] = {}
        self.chunks = 0 if recipe is None else len(recipe)
        self.row_id = 0
        self.file: OpenFile | None = None
        self.registered = False
        self.lent = 0
        self.mends = 0
        self.epoch = 0
        self.charge = 0
        self.claimed_charge = 0
        self.doubted = False
        self.whole: Digest | None = None
        self.prefix: Prefix | None = None
        self.believe_nothing()

    @property
    def key(self) -> Key:
        """What names the content in the cache."""
        return self.tenant, self.content

    @property
    def is_small(self) -> bool:
        """Whether it lives among the small ones, where no bits are kept."""
        return self.size <= SMALL_BYTES_MAX

    @property
    def all_present(self) -> bool:
        """Whether every chunk is in the file."""
        return self.file is not None and self.present_count == self.chunks > 0

    def adopt(self, row: ObjectRow, file: OpenFile) -> bool:
        """Take over what a committed row says of ``file``; False when it is about another recipe."""
        expected_bytes = (row.chunks + 7) // 8
        if row.size != self.size or len(row.present) != expected_bytes or row.chunks == 0:
            return False
        if self.recipe is not None and row.chunks != self.chunks:
            return False
        self.row_id = row.id
        self.chunks = row.chunks
        self.whole = Digest(row.whole) if row.whole else None
        self.charge = self.claimed_charge = row.charge
        self.file = file
        self.present = bytearray(row.present)
        self.present_count = int.from_bytes(row.present, "little").bit_count()
        self.present_bytes = row.present_bytes
        self.settled = self.whole is not None and self.all_present
        return True

    def learn(self, recipe: Recipe) -> bool:
        """Take the recipe; False when what is present is about another number of chunks: then it is not to be believed.

        The caller sees to that at once.
        """
        self.recipe = recipe
        agree = self.file is None or self.chunks == len(recipe)
        if self.chunks != len(recipe):
            self.chunks = len(recipe)
            self.believe_nothing()
        return agree

    def clear(self) -> OpenFile | None:
        """Forget what is present, and the file, which is returned: the caller disposes of it."""
        file, self.file = self.file, None
        self.row_id = 0
        self.charge = self.claimed_charge = 0
        self.doubted = False
        self.believe_nothing()
        return file

    def believe_nothing(self) -> None:
        """Forget what is present, and keep the file."""
        self.epoch += 1
        self.whole = None
        self.prefix = None
        self.settled = False
        self.present = bytearray((self.chunks + 7) // 8)
        self.present_count = 0
        self.present_bytes = 0

    def has(self, index: int) -> bool:
        """Whether chunk ``index`` is present."""
        return bool(self.present[index >> 3] >> (index & 7) & 1)

    def has_all(self, indexes: range) -> bool:
        """Whether all these chunks are present."""
        return self.present_count == self.chunks or all(self.has(i) for i in indexes)

    def add(self, index: int, length: int, charge: int) -> None:
        """Chunk ``index`` of ``length`` bytes has just been written to ``file``."""
        assert not self.has(index)
        self.present[index >> 3] |= 1 << (index & 7)
        self.present_count += 1
        self.present_bytes += length
        self.charge += charge

    def row(self) -> ObjectRow:
        """What the index may say once ``file`` has been fdatasync'ed, later than now."""
        assert self.file is not None
        return ObjectRow(
            self.row_id, self.tenant, self.content, self.size, self.chunks, self.whole or b"", self.file.name,
            self.present_bytes, self.charge, bytes(self.present), self.group,
            packed=b"" if self.row_id or self.recipe is None else self.recipe.packed,
        )  # fmt: skip
