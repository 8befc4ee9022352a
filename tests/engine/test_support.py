"""The ground that the engine tests stand on: the base image, names and ports of one's own, and a clean end."""

from __future__ import annotations

import socket
from pathlib import Path

from support.engine import Engine


def test_the_base_image_has_what_the_example_needs(engine: Engine) -> None:
    program = "import sys, ssl, venv, ensurepip; print(*sys.version_info[:2])"
    options = ("run", "--rm", "--label", engine.label, "--network", "none", engine.base_image)
    assert engine.docker(*options, "python3", "-c", program) == "3 11"
    listed = engine.docker(*options, "sh", "-c", "command -v gcc python; ls /opt/lightship/wheels")
    assert "/gcc" in listed
    assert "uwsgi" in listed.lower()


def test_ports_are_free_and_given_once(engine: Engine) -> None:
    first = engine.free_port()
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", first + 1))
        taken.listen()
        assert engine.free_port() not in (first, first + 1)


def test_all_that_was_made_is_removed_and_nothing_else(engine: Engine, tmp_path: Path) -> None:
    other = Engine(prefix=f"{engine.prefix}x", worker=engine.worker, base_image=engine.base_image)
    kept = engine.run(engine.base_image, "sleep", "300")
    (tmp_path / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nLABEL some=thing\n")
    tag = other.build(tmp_path, f"{other.name('image')}:1")
    running = other.run(tag, "sleep", "300", name=other.name())
    unlabelled = other.docker("create", "--name", other.name(), other.base_image)
    network = other.docker("network", "create", "--label", other.label, other.name("net"))
    other.clean()
    left = other.docker("ps", "--all", "--quiet", "--no-trunc").split()
    assert running not in left
    assert unlabelled not in left
    assert kept in left
    assert network not in other.docker("network", "ls", "--quiet", "--no-trunc").split()
    assert not other.docker("image", "ls", "--quiet", tag)
    assert other.docker("image", "inspect", "--format", "{{.Id}}", other.base_image)
