"""Programs from Debian's packages that some tests need beside the engine: installed when they are missing."""

from __future__ import annotations

import os
import shutil
import sys

from support.engine import TOOLS

SBIN = ("/usr/sbin", "/sbin")


def find(program: str) -> str | None:
    """Where a program is, in the folders of the system's own programs too."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), *SBIN]))


def need(why: str, **packages: str) -> None:
    """Have these programs (``mkfs_ext4="e2fsprogs"``: an underscore stands for a dot), or fail with what to do."""
    missing = [package for name, package in packages.items() if find(name.replace("_", ".")) is None]
    if missing:
        if str(TOOLS) not in sys.path:
            sys.path.append(str(TOOLS))
        from machine import install_packages

        install_packages(missing, why)
