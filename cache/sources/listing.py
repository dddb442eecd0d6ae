"""A page of a listing as an S3 store answers it (ListObjectsV2): the few fields that are needed of it.

State: none. Read with patterns and not with an XML parser: it comes from a cache that nobody vouches for, every key of
a library is plain ASCII, and what does not look like a listing is none.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Self

from manifest.errors import Unavailable

_WHOLE = re.compile(r"\s*(?:<\?xml[^>]*\?>)?\s*<ListBucketResult[\s>].*</ListBucketResult>\s*", re.DOTALL)
_TRUNCATED = re.compile(r"<IsTruncated>\s*(true|false)\s*</IsTruncated>")
_CONTENTS = re.compile(r"<Contents>(.*?)</Contents>", re.DOTALL)
_KEY = re.compile(r"<Key>([^<]*)</Key>")
_SIZE = re.compile(r"<Size>\s*([0-9]{1,18})\s*</Size>")
_FOLDER = re.compile(r"<CommonPrefixes>\s*<Prefix>([^<]*)</Prefix>\s*</CommonPrefixes>")


@dataclass(frozen=True, slots=True)
class Page:
    """``objects`` are (key, size in bytes), ``folders`` end with a slash; both with the library's own prefix."""

    objects: tuple[tuple[str, int], ...]
    folders: tuple[str, ...]
    is_last: bool

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises Unavailable for what is no listing."""
        text = body.decode(errors="replace")
        truncated = _TRUNCATED.search(text)
        if not _WHOLE.fullmatch(text) or truncated is None:
            raise Unavailable("what came as a listing is none")
        objects = []
        for content in _CONTENTS.findall(text):
            key, size = _KEY.search(content), _SIZE.search(content)
            if key is None or size is None:
                raise Unavailable("an object in a listing has no key or no size")
            objects.append((html.unescape(key[1]), int(size[1])))
        folders = tuple(html.unescape(found) for found in _FOLDER.findall(text))
        return cls(tuple(objects), folders, truncated[1] == "false")

    @property
    def last_name(self) -> str:
        """Behind which the next page begins."""
        return max([key for key, _ in self.objects] + list(self.folders), default="")
