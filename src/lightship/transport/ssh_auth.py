"""The keys that a connection may try, in the order in which OpenSSH tries them.

First those of the agent, then the files; a file with a passphrase only when all else was refused, so that nobody is
asked for what is not needed. Each passphrase is asked for once, however many servers need it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import asyncssh

from lightship.transport.ssh_config import Settings

__all__ = ["Ask", "Keys", "Passphrases", "ask_on_terminal"]

#: Asks a person for a passphrase, given the question; ``None`` when there is nobody to ask.
Ask = Callable[[str], Awaitable[str | None]]
_TRIES = 3


async def ask_on_terminal(question: str) -> str | None:
    """Ask where a person sits: on the terminal, if there is one."""
    return await asyncio.to_thread(_ask, question)


def _ask(question: str) -> str | None:
    import getpass  # noqa: PLC0415
    import sys  # noqa: PLC0415

    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    try:
        return getpass.getpass(question) or None
    except (EOFError, OSError):
        return None


class Passphrases:
    """Asks for the passphrase of a key once, for all servers of a command."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._known: dict[Path, str | None] = {}
        self._one_at_a_time = asyncio.Lock()

    async def pairs(self, path: Path, certificates: Sequence[Path]) -> Sequence[asyncssh.SSHKeyPair]:
        """The key of a file, unlocked; nothing when nobody knows its passphrase."""
        async with self._one_at_a_time:
            if path in self._known:
                known = self._known[path]
                return _load(path, known, certificates) if known is not None else ()
            for _ in range(_TRIES):
                phrase = await self._ask(f"Passphrase of the key {path}: ")
                if phrase is None:
                    break
                with contextlib.suppress(asyncssh.KeyEncryptionError, asyncssh.KeyImportError):
                    found = _load(path, phrase, certificates)
                    self._known[path] = phrase
                    return found
            self._known[path] = None
            return ()


def _load(path: Path, passphrase: str | None, certificates: Sequence[Path]) -> Sequence[asyncssh.SSHKeyPair]:
    return asyncssh.load_keypairs(str(path), passphrase, [str(one) for one in certificates if one.is_file()])


def _is_locked(error: Exception) -> bool:
    return isinstance(error, asyncssh.KeyEncryptionError) or "assphrase" in str(error)


def _public(path: Path) -> bytes | None:
    """The public half of a key's file, as far as it can be had without a passphrase."""
    for candidate in (Path(f"{path}.pub"), path):
        with contextlib.suppress(OSError, ValueError):
            return asyncssh.read_public_key(str(candidate)).public_data
    return None


class Keys:
    """The keys for one connection, handed out in turn."""

    def __init__(self, settings: Settings, passphrases: Passphrases, waiting: Callable[[bool], None]) -> None:
        self.locked: list[Path] = []
        """Files whose passphrase is not known: to be named when nothing else was let in."""
        self.unreadable: list[Path] = []
        self._settings = settings
        self._passphrases = passphrases
        self._waiting = waiting
        self._agent: asyncssh.SSHAgentClient | None = None
        self._asked = False
        self._later: list[Path] = []

    async def next(self) -> Sequence[asyncssh.SSHKeyPair]:
        """The keys to try next; none when there are no more."""
        if not self._asked:
            self._asked = True
            if found := await self._without_asking():
                return found
        while self._later:
            path = self._later.pop(0)
            self._waiting(True)
            try:
                unlocked = await self._passphrases.pairs(path, self._settings.certificates)
            finally:
                self._waiting(False)
            if unlocked:
                return unlocked
            self.locked.append(path)
        return ()

    async def _without_asking(self) -> list[asyncssh.SSHKeyPair]:
        agent = await self._agent_keys()
        held = {pair.key_public_data for pair in agent}
        found = list(agent)
        for path in self._settings.identities:
            if not path.is_file() or path.suffix == ".pub":
                continue
            if (public := _public(path)) is not None and public in held:
                continue
            try:
                found += _load(path, None, self._settings.certificates)
            except OSError:
                self.unreadable.append(path)
            except ValueError as error:
                (self._later if _is_locked(error) else self.unreadable).append(path)
        return found

    async def _agent_keys(self) -> list[asyncssh.SSHKeyPair]:
        if not self._settings.agent:
            return []
        try:
            self._agent = await asyncssh.connect_agent(self._settings.agent)
            pairs = list(await self._agent.get_keys())
        except (OSError, ValueError, asyncssh.Error):
            return []
        wanted = [public for path in self._settings.identities if (public := _public(path)) is not None]
        if self._settings.identities_only:
            pairs = [pair for pair in pairs if pair.key_public_data in wanted]
        pairs.sort(key=lambda pair: pair.key_public_data not in wanted)
        return [*self._certified(pairs), *pairs]

    def _certified(self, pairs: Sequence[asyncssh.SSHKeyPair]) -> list[asyncssh.SSHKeyPair]:
        """The agent's keys with the certificates that lie in files beside them."""
        files = [*self._settings.certificates, *(Path(f"{path}-cert.pub") for path in self._settings.identities)]
        found: list[asyncssh.SSHKeyPair] = []
        for file in dict.fromkeys(files):
            with contextlib.suppress(OSError, ValueError):
                certificate = asyncssh.read_certificate(str(file))
                for pair in pairs:
                    if pair.key_public_data == certificate.key.public_data and not pair.has_cert:
                        found.append(_with_certificate(pair, certificate))
        return found

    def close(self) -> None:
        """The agent is not needed any more."""
        if self._agent is not None:
            self._agent.close()
            self._agent = None


def _with_certificate(pair: asyncssh.SSHKeyPair, certificate: asyncssh.SSHCertificate) -> asyncssh.SSHKeyPair:
    import copy  # noqa: PLC0415

    made = copy.copy(pair)
    made.set_certificate(certificate)
    return made
