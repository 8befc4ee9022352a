"""An image's archive (``docker save``) without the layers that whoever gets it has already.

``docker load`` looks for each layer in the engine's own store before it reads it from the archive (moby:
``image/tarexport/load.go``; seen with 20.10.24), so that an archive without those that are there is loaded as well.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path

from lightship_agent.errors import AgentFailure

__all__ = ["give"]

_MANIFEST = "manifest.json"
_LARGEST = 16 * 1024 * 1024
_BLOCK = 1024 * 1024


def give(path: Path, known: int, size: int) -> Iterator[bytes]:
    """The archive without its lowest ``known`` layers, in parts of ``size`` bytes; the last one may be shorter."""
    held = bytearray()
    for block in _without(path, known):
        held += block
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


def _without(path: Path, known: int) -> Iterator[bytes]:
    with tarfile.open(str(path), "r:") as source:
        members = source.getmembers()
        left_out = _left_out(source, members, known)
        for member in members:
            if member.name in left_out:
                continue
            yield member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            if member.isreg():
                yield from _content(source, member)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _content(source: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    """The content as a tar file has it: in whole blocks."""
    content, left = source.extractfile(member), member.size
    while content is not None and left:
        block = content.read(min(left, _BLOCK))
        if not block:
            raise AgentFailure("docker-failed", "the image's archive ends too soon")
        left -= len(block)
        yield block
    yield b"\0" * (-member.size % tarfile.BLOCKSIZE)


def _left_out(source: tarfile.TarFile, members: list[tarfile.TarInfo], known: int) -> set[str]:
    """The names of the files of the lowest layers, but for those that a layer above them is the same as."""
    try:
        content = source.extractfile(_MANIFEST)
        layers = json.loads(content.read(_LARGEST) if content else b"")[0]["Layers"]
    except (KeyError, ValueError, IndexError, TypeError):
        raise AgentFailure("docker-failed", "the image's archive has no manifest that can be read") from None
    left_out = set(layers[:known]) - set(layers[known:])
    for member in members:
        if (member.issym() or member.islnk()) and member.name not in left_out:
            beside = posixpath.join(posixpath.dirname(member.name), member.linkname)
            left_out -= {posixpath.normpath(beside), member.linkname}
    return left_out
