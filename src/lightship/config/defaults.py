"""Defaults that are longer than a word."""

from __future__ import annotations

__all__ = ["INFRA", "ROOT"]

ROOT = "/srv/lightship"
"""Where services live on a server."""

INFRA: tuple[str, ...] = (
    "Dockerfile",
    ".dockerignore",
    "requirements*.txt",
    "requirements/*.txt",
    "Pipfile",
    "*.lock",
    "pylock*.toml",
    "supervisord.conf",
    "uwsgi.ini",
    "deploy/**",
)
"""The files that make the image: a change of one of them is a change of infrastructure.

``*.lock`` covers poetry.lock, uv.lock, pdm.lock and Pipfile.lock. ``pyproject.toml`` is not here: it mostly holds the
settings of tools, a linter's line length must not rebuild an image, and a project that installs from it nearly always
has a lock file that changes with its dependencies. A project without one adds ``pyproject.toml`` to its ``infra``.
"""
