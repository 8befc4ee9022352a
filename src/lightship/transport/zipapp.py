"""The agent as one file: a zip application of ``lightship_agent``, the same bytes for the same source.

Beside each module lies its byte code for the running Python, and that of ``__main__`` knows the place of each in the
file. So an agent of the same version starts without compiling, and without zipimport's search of the archive for each
module, which takes longer than what is found. Another version finds that the code is not for it, and takes the sources.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import marshal
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightship.cache import cache_directory, must_be_ours
from lightship.errors import LightshipError

__all__ = ["agent_bytes", "agent_file", "agent_hash"]

_KEPT_SECONDS = 30 * 86400
_EPOCH = (1980, 1, 1, 0, 0, 0)
_HEADER = 16  # bytes of a .pyc before the code
# Imports make many objects and no garbage: to look for some meanwhile costs a tenth of the agent's start. To take them
# all apart at its end costs as much: what has been said is flushed, and all else is the kernel's to close.
_MAIN = b"""import gc
import os

gc.disable()
from lightship_agent.__main__ import main

gc.freeze()
gc.enable()
os._exit(main())
"""
# Goes before _MAIN in the byte code. As zipimport's own importer, but for where a module's code comes from.
_IMPORTER = b"""import marshal
import os
import sys
import zipimport

FILE = os.open(sys.path[0], os.O_RDONLY | os.O_CLOEXEC)


class _Importer(zipimport.zipimporter):
    def find_spec(self, name, path=None, target=None):
        if name not in CODES:
            return None
        package = name == PACKAGE
        file = "/".join([self.archive, *name.split("."), *(["__init__"] if package else [])]) + ".py"
        spec = type(sys.__spec__)(name, self, origin=file, is_package=package)
        spec.has_location = True
        if package:
            spec.submodule_search_locations.append(file.rpartition("/")[0])
        return spec

    def create_module(self, spec):
        # With what importlib would work out for each module, the name of its byte code above all.
        module = type(sys)(spec.name)
        module.__file__, module.__cached__ = spec.origin, spec.origin + "c"
        return module

    def exec_module(self, module):
        exec(marshal.loads(os.pread(FILE, *CODES[module.__name__])), module.__dict__)

    def get_source(self, name):
        return self.get_data(sys.modules[name].__file__).decode()


sys.meta_path.insert(0, _Importer(sys.path[0]))
"""


def _package() -> Path:
    spec = importlib.util.find_spec("lightship_agent")
    if spec is None or not spec.submodule_search_locations:
        raise LightshipError("the package lightship_agent is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def _sources(package: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
            yield f"lightship_agent/{path.relative_to(package).as_posix()}", path.read_bytes()


@functools.cache
def _files() -> tuple[tuple[str, bytes], ...]:
    """Read once: an agent that is started ahead, and then the way to it, ask for the same file."""
    return (("__main__.py", _MAIN), *_sources(_package()))


def agent_hash(files: Sequence[tuple[str, bytes]] | None = None) -> str:
    """The name of the agent's content: changes with any of its files, and with this Python's byte code."""
    digest = hashlib.sha256(sys.implementation.cache_tag.encode() if sys.implementation.cache_tag else b"")
    digest.update(importlib.util.MAGIC_NUMBER + _IMPORTER)
    for name, data in files or _files():
        digest.update(f"\0{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()[:24]


def agent_bytes(files: Sequence[tuple[str, bytes]] | None = None) -> bytes:
    """The zip application. The same source gives the same bytes."""
    files = files or _files()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        places = {}
        for name, data in files:
            _add(archive, name, data)
            if name.startswith("lightship_agent/") and name.endswith(".py") and "/boot/" not in name:
                module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                code = _compiled(name, data)
                _add(archive, f"{name}c", code)
                end = buffer.tell()
                places[module] = (len(code) - _HEADER, end - len(code) + _HEADER)
        main = dict(files)["__main__.py"]
        known = f"PACKAGE, CODES = 'lightship_agent', {places!r}\n".encode()
        _add(archive, "__main__.pyc", _compiled("__main__.py", known + _IMPORTER + main))
    return buffer.getvalue()


def _compiled(name: str, data: bytes) -> bytes:
    """Byte code that is never held against its source (PEP 552), so that no time of a file matters."""
    code = compile(data, f"agent/{name}", "exec", dont_inherit=True)
    flags = (0b01).to_bytes(4, "little")
    return importlib.util.MAGIC_NUMBER + flags + importlib.util.source_hash(data) + marshal.dumps(code)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)


def agent_file(cache: Path | None = None) -> Path:
    """The zip application as a file in the user's cache, made when it is not there."""
    files = _files()
    directory = cache or cache_directory()
    path = directory / f"agent-{agent_hash(files)}.pyz"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        must_be_ours(directory)
        if path.is_file() and not path.is_symlink():
            return path
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".agent-", delete=False) as file:
            file.write(agent_bytes(files))
        Path(file.name).rename(path)
        _forget_old(directory)
    except OSError as error:
        raise LightshipError(
            f"cannot keep the agent in {directory}: {error}", hint="set XDG_CACHE_HOME to a directory you can write to"
        ) from error
    return path


def _forget_old(directory: Path) -> None:
    """Remove the agents of versions that were left long ago; an agent that runs still reads its file."""
    for old in directory.glob("agent-*.pyz"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _KEPT_SECONDS:
                old.unlink()
