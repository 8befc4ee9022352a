#!/usr/bin/env python3
"""The image of a test server: the base image with sshd, sudo, git and a Docker engine of its own, of Debian's packages.

A container of it is a server like any other, as long as it is run with what ``tests/support/servers.py`` gives it. The
tag holds a hash of all that it is made of; it bears the base image's name, so that what removes that removes it too.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

import base_image
from machine import TroubleError, alone, run, say, stop_with, tail

PACKAGES = ("docker.io", "iptables", "iproute2", "openssh-server", "procps", "sudo", "git", "python3")

START = """\
#!/bin/sh
# The engine wants control groups that it can write to; a plain remount says busy.
for c in /sys/fs/cgroup /sys/fs/cgroup/*; do mount -o remount,rw,bind "$c" 2>/dev/null; done
mkdir -p /run/sshd
ssh-keygen -q -A
/usr/sbin/sshd
exec sleep infinity
"""

ENGINE_START = """\
#!/bin/sh
# A process id of the engine's last life may be anybody's by now.
rm -f /var/run/docker.pid
exec setsid dockerd --host unix:///var/run/docker.sock >>/var/log/dockerd.log 2>&1 </dev/null &
"""

SSHD_CONFIG = """\
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
MaxStartups 100
AuthorizedKeysFile /etc/ssh/keys
"""

DOCKERFILE = f"""\
ARG FROM
FROM ${{FROM}}
RUN set -e; \\
    apt-get update; \\
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {" ".join(PACKAGES)}; \\
    rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*; \\
    for user in deploy git; do useradd --create-home --shell /bin/bash $user; usermod -p '*' $user; done; \\
    echo 'deploy ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/deploy
COPY server-start engine-start /usr/local/bin/
COPY sshd_config /etc/ssh/sshd_config
STOPSIGNAL SIGKILL
ENTRYPOINT ["/usr/local/bin/server-start"]
"""

FILES = {"server-start": START, "engine-start": ENGINE_START, "sshd_config": SSHD_CONFIG, "Dockerfile": DOCKERFILE}


def build(base: str, name: str) -> None:
    """Build it upon the base image."""
    say("making the image of the test servers (once)")
    with tempfile.TemporaryDirectory(prefix="lightship-server-") as folder:
        for file, text in FILES.items():
            (Path(folder) / file).write_text(text)
            (Path(folder) / file).chmod(0o755)
        label = f"{base_image.LABEL}=server"
        command = ["docker", "build", "--build-arg", f"FROM={base}", "--label", label, "--tag", name, folder]
        done = run(command, timeout=900)
    if done.returncode:
        raise TroubleError(f"The image of the test servers could not be built:\n\n{tail(done.stdout + done.stderr)}")


def ensure() -> str:
    """Have the image; its full name."""
    base = base_image.ensure()
    digest = hashlib.sha256("\0".join([base, *FILES.values()]).encode()).hexdigest()[:12]
    name = f"{base_image.NAME}:server-{digest}"
    if not base_image.image_id(name):
        with alone("server-image"):
            if not base_image.image_id(name):
                build(base, name)
    return name


def main() -> int:
    """Make it and say what it is called."""
    try:
        print(ensure())
    except TroubleError as trouble:
        return stop_with(trouble)
    return 0


if __name__ == "__main__":
    sys.exit(main())
