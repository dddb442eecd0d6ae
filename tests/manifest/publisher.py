"""A process that publishes to a show, one file a publish, and says what became of each: ``python -m …``.

Arguments: library URL, folder of replicas, key, trust file, a name for its files, how many. Before a publish it
prints ``begin <id> <path>``, as a publisher's journal would have it, and ``done <id> <revision>`` after it. A line
``again <id> <path>`` in the arguments' place (id and path instead of a count) runs one publish once more.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

from manifest.commit import Publish, commit
from manifest.identity import read_identity
from manifest.library import Library
from manifest.show import Show
from manifest.trust import PinnedKeys, SigningKey
from tests.manifest.logs import SHOW, put


def main(url: str, folder: str, key_file: str, trust_file: str, name: str, *what: str) -> None:
    library = Library.open(url)
    key = SigningKey.load(Path(key_file))
    trust = PinnedKeys.from_file(Path(trust_file))
    if len(what) == 2:
        work = [(what[0], what[1])]
    else:
        work = [(secrets.token_hex(16), f"{name}/file{number:03}") for number in range(int(what[0]))]
    with Show.open(library, read_identity(library), trust, SHOW, Path(folder)) as show:
        for publish_id, path in work:
            print("begin", publish_id, path, flush=True)
            publish = Publish(SHOW, publish_id, name, "", "", [put(path)])
            revision = commit(show.follower, key, publish, attempts=500, deadline_s=150)
            print("done", publish_id, revision, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
