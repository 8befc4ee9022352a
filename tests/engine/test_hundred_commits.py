"""A hundred commits in a row: the kind of deploy that each calls for, and one build for each fingerprint."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.engine import Engine
from support.repo import git
from support.site import Site

pytestmark = pytest.mark.timeout(900)

UWSGI, REQUIREMENTS, DOCKERFILE, SUPERVISOR = (
    "deploy/uwsgi.ini", "requirements.txt", "Dockerfile", "deploy/supervisord.conf",
)  # fmt: skip
#: The files that are infrastructure and change here, by the letter of the change. A small letter takes the file back
#: to what is live.
INFRASTRUCTURE = {"U": UWSGI, "R": REQUIREMENTS, "F": DOCKERFILE, "M": SUPERVISOR, "I": ".dockerignore"}
EXTRA, OTHER, NESTED = "deploy/extra.conf", "deploy/other.conf", "service/requirements-more.txt"

# By hand: what the commit changes, and the kind that a deploy of it would be, given what is live. "!" is deployed.
#   C code, D documents, E nothing at all, L files that are only called like infrastructure, B a binary file,
#   K 600 files at once and k their end, T a file becomes a link, O a name that is no ASCII
#   U uwsgi.ini, R requirements.txt, F Dockerfile, M a mode, I .dockerignore, X code and uwsgi.ini
#   N another file in deploy/, V it gets another name, G it goes; Y a requirements file deeper in the tree, y it goes
HISTORY = """
C code       D code       C code!      U container  C full       u code       E code       L code       D code
C code!      E code       R container  R container  r code       F container! E code       C code       F full
F full       f code       M full       m code       C code!      M container  m code       N container  V container
G code       C code       X full!      C code       C code       D code       C code       L code       C code
E code       C code       D code       C code!      R container  D full       C full       r code       U full
u code       F full       f code       E code       C code!      U container  u code       R container  U container
r container  u code       N container  C full       G code       C code!      X full       u code       L code
Y full       y code       C code       I full       i code       E code       C code!      C code       C code
D code       E code       C code       L code       C code       C code       D code       U full!      E code
R container  r code       F container! C code       U full       u code       D code       C code       C code!
B code       K code       k code       U full       u code       T code       E code       O code       F full
f code!
"""
#: By hand as well: the first image, and one for each state of the infrastructure that was not there before. (The mode
#: that changes the second time makes the same image as the first time.)
IMAGES = 28


class History:
    """The repository, as the letters change it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.tree = site.repository.tree
        self.number = 0

    def commit(self, letter: str, live: str) -> str:
        """One commit; its name."""
        self.number += 1
        getattr(self, f"_{letter}", lambda: self._infrastructure(letter, live))()
        return self.site.repository.commit(f"{self.number}: {letter}")

    def _infrastructure(self, letter: str, live: str) -> None:
        path = INFRASTRUCTURE[letter.upper()]
        if letter.islower():
            git(self.tree, "checkout", "--quiet", live, "--", path)
        elif letter == "M":
            (self.tree / path).chmod(0o755)
        else:
            with (self.tree / path).open("a") as file:
                file.write(f"# {self.number}\n")

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file."""
        self.site.repository.write({name: content})

    def _C(self) -> None:  # noqa: N802 - the letter of the table
        self.write("service/version.py", self.site.code(f"v{self.number}")["service/version.py"])

    def _D(self) -> None:  # noqa: N802
        self.write("README.md", f"{self.number}\n")

    def _E(self) -> None:  # noqa: N802
        pass

    def _L(self) -> None:  # noqa: N802
        for name in ("docs/deploy/uwsgi.ini.md", "service/deploy/notes", "requirements.in", "service/Dockerfile.txt"):
            self.write(name, f"{self.number}\n")

    def _B(self) -> None:  # noqa: N802
        self.write("service/logo.png", bytes(range(256)) * self.number)

    def _K(self) -> None:  # noqa: N802
        self.site.repository.write({f"service/many/{number}.txt": f"{number}" for number in range(600)})

    def _k(self) -> None:
        git(self.tree, "rm", "-r", "--quiet", "service/many")

    def _T(self) -> None:  # noqa: N802
        (self.tree / "README.md").unlink()
        (self.tree / "README.md").symlink_to("requirements.in")

    def _O(self) -> None:  # noqa: N802
        self.write("service/grüße an 東京.txt", "x")

    def _X(self) -> None:  # noqa: N802
        self._C()
        self._infrastructure("U", "")

    def _N(self) -> None:  # noqa: N802
        self.write(EXTRA, "extra\n")

    def _V(self) -> None:  # noqa: N802
        git(self.tree, "mv", EXTRA, OTHER)

    def _G(self) -> None:  # noqa: N802
        git(self.tree, "rm", "--quiet", "--ignore-unmatch", EXTRA, OTHER)

    def _Y(self) -> None:  # noqa: N802
        self.write(NESTED, f"# {self.number}\n")

    def _y(self) -> None:
        git(self.tree, "rm", "--quiet", NESTED)


def test_the_kind_is_right_for_each_and_an_image_is_built_once_for_a_fingerprint(
    engine: Engine, tmp_path: Path
) -> None:
    rows = [row for line in HISTORY.strip().splitlines() for row in zip(*[iter(line.split())] * 2, strict=True)]
    assert len(rows) == 100
    site = Site(engine, tmp_path / "site", files={".dockerignore": "*.pyc\n"})
    log = tmp_path / "points"
    testing = {"LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS_LOG": str(log)}
    try:
        site.deploy(environment=testing)
        history, live = History(site), site.repository.head
        fingerprints: set[str] = set()
        wrong = []
        for number, (letter, words) in enumerate(rows, 1):
            commit, kind = history.commit(letter, live), words.rstrip("!")
            plan = site.run("plan", "--json", expect=0).result
            assert plan["commit"] == commit
            (why,) = [shown["why"] for _, shown in plan["plans"]]
            if plan["kind"] != kind:
                wrong.append((number, letter, kind, plan["kind"], why))
            if letter in INFRASTRUCTURE:
                assert INFRASTRUCTURE[letter] in why[0], (number, why)
            if kind != "code":
                fingerprints.add(site.run("build", "--json", environment=testing, expect=0).result["fingerprint"])
            if words.endswith("!"):
                said = site.deploy(environment=testing)
                assert (said.result["kind"], said.result["outcome"]) == (kind, "done"), (number, said.shown)
                assert site.get()[::2] == (200, commit)
                live = commit
        assert not wrong, wrong
        # The history of this very server says how long it is going to take.
        history.commit("C", live)
        (seconds,) = [shown["expected_seconds"] for _, shown in site.run("plan", "--json").result["plans"]]
        assert 0.1 < seconds < 60
        assert f"{seconds:.1f} s, as code deploys took here before" in site.run("plan").stdout
        assert len(fingerprints) == IMAGES - 1, "all but the first"
        assert log.read_text().split().count("build.start") == IMAGES
    finally:
        site.close()
        shown = engine.docker("image", "ls", "--quiet", "--filter", f"label=lightship.service={site.name}")
        if shown:
            engine.docker("image", "rm", "--force", *set(shown.split()), check=False)
