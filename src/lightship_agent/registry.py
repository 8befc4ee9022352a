"""What a registry's refusals mean. Docker tells them only in words; each becomes an error with a code and a hint."""

from __future__ import annotations

import re

from lightship_agent.errors import AgentFailure
from lightship_agent.system import Completed

__all__ = ["digest_of", "host_of", "registry_failure", "repository_of"]

HUB = "docker.io"

# In this order: a message that says that nobody is logged in may also say that the image was not found.
_KINDS = (
    (
        "registry-certificate",
        r"x509:|certificate|server gave HTTP response to HTTPS client|first record does not look like a TLS handshake",
        "does not prove who it is",
        "put the certificate of its CA into /etc/docker/certs.d/{host}/ca.crt on this server",
    ),
    (
        "registry-denied",
        r"unauthorized|no basic auth|authentication required|denied|forbidden|incorrect username or password|"
        r"insufficient_scope|error getting credentials|status: 40[13]",
        "does not let this server in",
        "log in as root on this server (`docker login {host}`, or a credential helper in root's "
        "~/.docker/config.json), then try again",
    ),
    (
        "image-corrupt",
        r"verification failed|unknown blob|blob unknown|unexpected EOF|digest (mismatch|invalid|did not match)|"
        r"unexpected commit digest|failed size validation|invalid checksum|gzip: invalid|archive/tar: invalid",
        "has a damaged copy of it",
        "delete the image from the registry, have it collect its garbage, and push the image again (`lightship build`)",
    ),
    (
        "image-not-found",
        r"manifest unknown|name unknown|not found|does not exist|no such manifest|repository name not known",
        "does not have it",
        "see whether the name and the tag are right, and whether whatever builds the image has ended",
    ),
    (
        "registry-unreachable",
        r"connection refused|no such host|timeout|timed out|deadline exceeded|no route to host|unreachable|"
        r"connection reset|broken pipe|server misbehaving|Temporary failure|received unexpected HTTP status: 5|"
        r"service unavailable|bad gateway|: EOF|TLS handshake|invalid character",
        "cannot be reached",
        "see that it answers (`curl https://{host}/v2/` on this server), then try again; what serves was not touched",
    ),
)
_LOGIN = r"unauthorized|no basic auth|authentication required|incorrect username|error getting credentials|status: 401"
_DIGEST = r"(?i)\bdigest: (sha256:[0-9a-f]{64})\b"


def host_of(image: str) -> str:
    """The registry in an image's name; Docker Hub when it has none."""
    first, slash, _ = image.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else HUB


def repository_of(image: str) -> str:
    """An image's name without tag and digest, as the engine tells it: Docker Hub is left out."""
    name = image.partition("@")[0]
    for prefix in (f"index.{HUB}/", f"{HUB}/", "library/"):
        name = name[len(prefix) :] if name.startswith(prefix) else name
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def digest_of(done: Completed) -> str:
    """The digest that a pull or a push has told; empty when it told none."""
    found = re.findall(_DIGEST, done.out)
    return str(found[-1]) if found else ""


def registry_failure(what: str, image: str, done: Completed) -> AgentFailure:
    """The error of a ``docker pull`` or ``push`` that failed; ``what`` is it in words ("pull the image")."""
    lines = [line.strip() for line in (done.err or done.out).strip().splitlines() if line.strip()]
    reason = (lines or [f"exit status {done.status}"])[-1][:500]
    reason = reason[len("Error response from daemon: ") :] if reason.startswith("Error response from") else reason
    host = host_of(image)
    detail = {"image": image, "registry": host, "status": done.status, "stderr": done.err[-4000:]}
    if done.timed_out:
        reason = "it took too long: timeout"
    found = _kind(reason)
    if found is None:
        return AgentFailure("docker-failed", f"could not {what} {image}: {reason}", detail=detail)
    code, words, hint = found
    # Some registries also deny access to what is only not there yet; a password that is wrong is another thing.
    detail["login"] = code == "registry-denied" and re.search(_LOGIN, reason, re.IGNORECASE) is not None
    return AgentFailure(
        code, f"could not {what} {image}: the registry {host} {words} ({reason})", hint.format(host=host), detail
    )


def _kind(reason: str) -> tuple[str, str, str] | None:
    if "no space left" in reason.lower():
        return None
    for code, pattern, words, hint in _KINDS:
        if re.search(pattern, reason, re.IGNORECASE):
            return code, words, hint
    return None
