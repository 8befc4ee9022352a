"""The collection as a whole: it is built, its options are those that are documented, and what is missing is told."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightship
from support.playbooks import BIN, ROOT, Playbooks, environment, installed
from support.repo import Repository

COLLECTION = ROOT / "ansible"
MODULES = sorted(path.stem for path in (COLLECTION / "plugins" / "modules").glob("*.py"))
PLAYBOOKS = sorted(path.stem for path in (COLLECTION / "playbooks").glob("*.yml"))


@pytest.fixture
def here(tmp_path: Path) -> Playbooks:
    """Playbooks on this machine, without SSH."""
    inventory = tmp_path / "hosts.ini"
    inventory.write_text(f"here ansible_connection=local ansible_python_interpreter={sys.executable}\n")
    return Playbooks(tmp_path, inventory, {}, variables={"lightship_become": False})


def documented() -> dict[str, Any]:
    """What ansible-doc says of all modules."""
    done = subprocess.run(
        [str(BIN / "ansible-doc"), "--json", *(f"lightship.deploy.{name}" for name in MODULES)],
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(installed())},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@functools.cache
def options() -> dict[str, dict[str, Any]]:
    """The options that each module takes, as its action plugin says it."""
    script = (
        "import json, importlib, sys; sys.path.insert(0, sys.argv[1]); "
        "load = lambda name: importlib.import_module('ansible_collections.lightship.deploy.plugins.action.' + name); "
        "print(json.dumps({name: load(name).ActionModule.SPEC for name in sys.argv[2:]}))"
    )
    command = [sys.executable, "-c", script, str(installed()), *MODULES]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def test_every_module_is_documented_with_its_options_examples_and_what_it_returns() -> None:
    found = documented()
    assert len(found) == len(MODULES)
    for name in MODULES:
        said = found[f"lightship.deploy.{name}"]
        assert said["examples"].strip(), name
        assert said["return"], name
        told = {
            option: {
                key: one.get(key) for key in ("type", "required", "default", "choices", "elements") if one.get(key)
            }
            for option, one in said["doc"]["options"].items()
        }
        taken = {
            option: {key: value for key, value in one.items() if key != "no_log" and value}
            for option, one in options()[name].items()
        }
        assert told == taken, name


def test_secrets_are_never_logged() -> None:
    for name in MODULES:
        taken = options()[name]
        assert all(taken[one].get("no_log") for one in ("rollout", "secrets", "settings") if one in taken), name


def test_the_collection_and_the_package_have_one_version() -> None:
    galaxy = yaml.safe_load((COLLECTION / "galaxy.yml").read_text())
    base = (COLLECTION / "plugins" / "plugin_utils" / "base.py").read_text()
    assert galaxy["version"] == lightship.__version__
    assert f'VERSION = "{lightship.__version__}"' in base
    needed = (COLLECTION / "meta" / "ee-requirements.txt").read_text().strip()
    assert needed == f"lightship=={lightship.__version__}"
    assert yaml.safe_load((COLLECTION / "meta" / "runtime.yml").read_text()) == {"requires_ansible": ">=2.15.0"}


def test_all_playbooks_are_there_and_can_be_read(here: Playbooks) -> None:
    assert PLAYBOOKS == ["code", "container", "full", "rollback", "setup", "status"]
    for name in PLAYBOOKS:
        here.run(f"lightship.deploy.{name}", "--syntax-check", service="shop")


def test_every_variable_of_the_playbooks_is_documented() -> None:
    page = (ROOT / "docs" / "how-to" / "ansible.md").read_text()
    used = {
        word
        for path in (COLLECTION / "playbooks").rglob("*.yml")
        for word in re.findall(r"\b(?:lightship_(?!rollout\b)[a-z_]+|service|to)(?= \| default)", path.read_text())
    }
    assert "lightship_serial" in used
    assert not [word for word in used if f"`{word}`" not in page]


@pytest.mark.parametrize("version", [None, "0.0.1"])
def test_without_the_package_or_with_another_version_of_it_the_way_out_is_told(
    here: Playbooks, version: str | None
) -> None:
    place = here.folder / "python" / "lightship"
    place.mkdir(parents=True)
    # A package of that name comes first, and has nothing, or is another version.
    text = "raise ImportError('nothing of lightship')" if version is None else f"__version__ = {version!r}"
    stand_in = "from pathlib import Path\n" if version else ""
    real = f"__path__.append({str(ROOT / 'src' / 'lightship')!r})\n" if version else ""
    (place / "__init__.py").write_text(f"{stand_in}{real}{text}\n")
    ran = here.run("lightship.deploy.status", expect=2, service="shop", env={"PYTHONPATH": str(place.parent)})
    assert "-m pip install lightship==" in ran.output
    assert sys.executable in ran.output


def test_a_wrong_configuration_is_told_by_its_field_and_hides_its_secrets(here: Playbooks) -> None:
    settings = {"repository": "https://me:t0kenofmine@git.example/shop.git", "portz": ["8000:8000"]}
    ran = here.run("lightship.deploy.code", "-vvv", expect=2, service="shop", lightship_settings=settings)
    assert "portz" in ran.output
    assert "did you mean ports?" in ran.output
    assert "t0kenofmine" not in ran.output
    ran = here.run("lightship.deploy.code", expect=2, service="shop", lightship_secrets={"A B": "hush-hush"})
    assert "hush-hush" not in ran.output


RESOLVES = """
- hosts: all
  gather_facts: false
  tasks:
    - lightship.deploy.resolve: {service: shop, settings: "{{ settings }}", secrets: "{{ secrets }}"}
      register: found
    - assert: {that: "(found.rollout | b64decode | from_json).env.TOKEN | hash('sha256') == wanted"}
      no_log: true
    - assert: {that: found.commit == commit}
    - assert: {that: "(found.rollout | b64decode | from_json).roles.here == ['web']"}
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("which", ["newest", "oldest"])
def test_what_a_vault_hides_reaches_the_rollout_and_nothing_else(here: Playbooks, which: str) -> None:
    here = replace(here, bin=environment("oldest") if which == "oldest" else BIN)
    repository = Repository(here.folder / "git")
    commit = repository.commit("first", {"a": "1"})
    (here.folder / "password").write_text("of the vault\n")
    hidden = "what-the-vault-hides"
    digest = hashlib.sha256(hidden.encode()).hexdigest()
    encrypt = [str(BIN / "ansible-vault"), "encrypt_string", "--vault-password-file", "password", hidden]
    said = subprocess.run(
        encrypt, cwd=here.folder, env={**os.environ, **here.settings}, capture_output=True, text=True, check=True
    ).stdout
    (here.folder / "secrets.yml").write_text(f"secrets:\n  TOKEN: {said}")
    (here.folder / "own.yml").write_text(RESOLVES)
    here.inventory.write_text(here.inventory.read_text().strip() + " lightship_roles='[\"web\"]'\n")
    settings = {"repository": str(repository.remote), "image": "shop:1", "app": "shop.wsgi:app"}
    arguments = ("-vvvv", "--vault-password-file", "password", "-e", "@secrets.yml")
    ran = here.run("own.yml", *arguments, settings=settings, commit=commit, wanted=digest)
    assert hidden not in ran.output


def test_a_rollout_that_was_not_resolved_is_refused(here: Playbooks) -> None:
    (here.folder / "own.yml").write_text(
        "- hosts: all\n  gather_facts: false\n  tasks:\n    - lightship.deploy.prepare: {rollout: e30K}\n"
    )
    ran = here.run("own.yml", expect=2)
    assert "is not what lightship.deploy.resolve registered" in ran.output


@pytest.mark.timeout(600)
def test_ansible_lint_at_its_strictest() -> None:
    place = installed() / "ansible_collections" / "lightship" / "deploy"
    command = [str(environment("lint") / "ansible-lint"), "--offline", "--profile", "production", "--strict", "."]
    settings = {"ANSIBLE_COLLECTIONS_PATH": str(installed()), "PATH": f"{environment('lint')}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=place, env={**os.environ, **settings}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "production" in done.stdout + done.stderr


#: ansible-test brings pip into its environments by a program of the web; Python's own does as well.
BRINGS_PIP = "import ensurepip\n\nensurepip.bootstrap(default_pip=True)\n"


@pytest.mark.timeout(600)
def test_ansible_test_finds_it_sane(tmp_path: Path) -> None:
    """All sanity tests that Ansible's own test program has for a collection, but those that need PowerShell."""
    home = ROOT / ".lightship" / "ansible-test"
    cache = home / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "get_pip_24_2.py").write_text(BRINGS_PIP)
    place = tmp_path / "ansible_collections" / "lightship" / "deploy"
    shutil.copytree(COLLECTION, place)
    program = str(BIN / "ansible-test")
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    command = [program, "sanity", "--local", "--python", python, "--requirements", "--skip-test", "pslint"]
    environment = {**os.environ, "HOME": str(home), "LC_ALL": "C.UTF-8", "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert 'Running sanity test "validate-modules"' in done.stdout + done.stderr
