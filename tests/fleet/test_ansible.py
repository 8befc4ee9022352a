"""The collection on real servers: by the real ansible-playbook over SSH, as a user who becomes root by sudo."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from support.ec2 import INVENTORY as OF_EC2
from support.ec2 import mocked_ec2
from support.engine import Engine
from support.playbooks import BIN, ROOT, Playbooks, Ran, environment
from support.promises import until
from support.servers import IMAGE, Fleet, Servers, all_run, no_failures, one_release_each, outcomes

HOSTS = """
[web]
{hosts}
[web:vars]
ansible_user=deploy
ansible_python_interpreter=/usr/bin/python3
"""
# Healthy while it only boots; once it is live it is not, where a file in the shared volume says so.
BREAKS = """
del HEALTH_STATUS
import os

def __getattr__(name):
    if name != "HEALTH_STATUS":
        raise AttributeError(name)
    mine = os.path.basename(os.path.realpath(os.path.join(os.path.dirname(__file__), "..")))
    live = os.path.basename(os.readlink("/srv/lightship/code/current"))
    return "500 Broken" if mine == live and os.path.exists("/srv/lightship/shared/bad") else "200 OK"
"""
AGENT = "^/usr/bin/python3 -I -S -c import os,sys"
OWN = """
- hosts: all
  gather_facts: false
  become: true
  tasks:
    - lightship.deploy.resolve: {service: "{{ service }}", config: "{{ lightship_config }}", held_seconds: 6}
      register: found
      run_once: true
    - lightship.deploy.prepare: {rollout: "{{ found.rollout }}"}
    - wait_for: {timeout: 45}
      delegate_to: localhost
      become: false
      run_once: true
"""


def playbooks_for(fleet: Fleet, folder: Path) -> Playbooks:
    """Playbooks for a service on the servers."""
    inventory = folder / "hosts.ini"
    inventory.write_text(HOSTS.format(hosts="\n".join(fleet.servers.names)))
    ssh = f"-F {fleet.servers.config} -oControlMaster=auto -oControlPersist=60s -oControlPath={folder}/%C"
    environment = {**fleet.servers.environment, "ANSIBLE_SSH_ARGS": ssh}
    variables = {"service": fleet.name, "lightship_config": str(fleet.folder / "lightship.yml")}
    return Playbooks(folder, inventory, environment, variables=variables)


@pytest.fixture(scope="module")
def ansible(live: Fleet) -> Iterator[Playbooks]:
    """The playbooks on the service that is live. A socket's path is short, so the folder's has to be."""
    with tempfile.TemporaryDirectory(prefix="ansible-", ignore_cleanup_errors=True) as folder:
        yield playbooks_for(live, Path(folder))


def nobody(ran: Ran, fleet: Fleet) -> bool:
    """Whether the run changed nothing anywhere."""
    return ran.changed == dict.fromkeys(fleet.servers.names, 0)


def held(fleet: Fleet) -> list[int]:
    """How many agents each server has that a playbook started."""
    return [int(one.do(f"pgrep -fc -- '{AGENT}' || true")) for one in fleet.servers.machines]


def none_is_held(fleet: Fleet) -> bool:
    """Whether no agent is left on any server."""
    return not any(held(fleet))


def test_a_code_deploy_is_foretold_done_once_and_taken_up_by_the_command_line(live: Fleet, ansible: Playbooks) -> None:
    before, first = live.fingerprints(), live.release
    live.new()
    second = live.new()
    foretold = ansible.run("lightship.deploy.code", "--check", "--diff")
    assert live.fingerprints() == before
    assert f"-commit: {first}" in foretold.output
    assert f"+commit: {second}" in foretold.output
    assert "service/version.py" in foretold.output, foretold.output

    with live.loads() as loads:
        done = ansible.run("lightship.deploy.code")
        all_run(live, second)
        assert done.changed == foretold.changed
        assert all(done.changed.values())
        before = live.fingerprints()
        assert nobody(ansible.run("lightship.deploy.code"), live)
        assert live.fingerprints() == before
        assert none_is_held(live)

        # The command line goes on from there, and the playbook from what the command line did.
        assert outcomes(live.deploy()) == dict.fromkeys(live.servers.names, "nothing")
        live.run("rollback", "--json", expect=0)
        all_run(live, first)
        foretold = ansible.run("lightship.deploy.rollback", "--check", to=second)
        all_run(live, first)
        done = ansible.run("lightship.deploy.rollback", to=second)
        assert done.changed == foretold.changed
        all_run(live, second)
        assert nobody(ansible.run("lightship.deploy.rollback", to=second), live)
    no_failures(loads)
    status = ansible.run("lightship.deploy.status")
    assert nobody(status, live)
    assert status.output.count(second) == len(live.servers.names)


def test_limit_batches_and_a_host_that_fails(live: Fleet, ansible: Playbooks) -> None:
    first = live.release
    second = live.new(more=BREAKS)
    one, two, *others = live.servers.names
    ran = ansible.run("lightship.deploy.code", "--limit", one)
    assert ran.recap.keys() == {one}
    assert live.currents == {**dict.fromkeys(live.servers.names, first), one: second}
    live.run("rollback", "--json", "--to", first, expect=0)

    bad = f"{live.home}/shared/bad"
    machine = live.servers.machines[1]
    machine.do(f"mkdir -p {live.home}/shared && touch {bad}")
    try:
        # Nobody may fail: the first batch is verified, the second fails, and so both go back, and the rest stays.
        ran = ansible.run("lightship.deploy.code", expect=2, lightship_serial=1, lightship_retry=True)
        assert live.currents == dict.fromkeys(live.servers.names, first)
        all_run(live, first)
        assert all(ran.count("failed").values()), ran.output
        assert f"{two} failed" in ran.output
        assert none_is_held(live)
        # Within the budget the others keep it.
        more = {"lightship_max_fail_percentage": 50, "lightship_retry": True}
        ran = ansible.run("lightship.deploy.code", expect=2, lightship_serial="50%", **more)
        assert one_release_each(live) == {**dict.fromkeys(live.servers.names, second), two: first}
        assert ran.count("failed") == {**dict.fromkeys(live.servers.names, 0), two: 1}
    finally:
        machine.do(f"rm -f {bad}")
    ansible.run("lightship.deploy.code", lightship_retry=True)
    all_run(live, second)
    assert others


def test_a_host_that_is_down_stops_the_rollout_or_is_left_out(live: Fleet, ansible: Playbooks) -> None:
    *healthy, down = live.servers.machines
    before, names = live.currents, [one.name for one in healthy]
    commit = live.new()
    down.do("kill $(cat /run/sshd.pid); pkill -x sshd || true")
    try:
        ran = ansible.run("lightship.deploy.code", expect=None)
        assert ran.status != 0
        assert live.currents == before
        assert ran.count("unreachable") == {**dict.fromkeys(names, 0), down.name: 1}
        assert "not all hosts are prepared" in ran.output
        assert none_is_held(live)
        ran = ansible.run("lightship.deploy.code", expect=4, lightship_skip_unreachable=True)
        assert live.currents == {**dict.fromkeys(names, commit), down.name: before[down.name]}
    finally:
        down.do("/usr/sbin/sshd")
    ran = ansible.run("lightship.deploy.code")
    assert {host for host, changed in ran.changed.items() if changed} == {down.name}
    all_run(live, commit)


def test_a_broken_commit_changes_nothing_and_a_killed_run_leaves_nothing(live: Fleet, ansible: Playbooks) -> None:
    before, first = live.fingerprints(), live.release
    live.new(more="import nothing_of_this_name")
    ran = ansible.run("lightship.deploy.code", expect=2)
    assert "nothing_of_this_name" in ran.output
    assert live.fingerprints() == before

    live.new()
    (ansible.folder / "own.yml").write_text(OWN)
    process = ansible.start("own.yml")
    try:
        until(lambda: all(held(live)), 60, "the agents that are held")
        said = live.deploy(expect=6)
        assert "ansible deploy main" in said.error["message"], said.shown
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    until(lambda: none_is_held(live), 60, "the end of the agents that nobody speaks to")
    assert live.servers.machines[0].do("find /var/cache/lightship -name 'held-*'") == ""
    assert live.currents == dict.fromkeys(live.servers.names, first)
    live.goes_on()


def test_containers_and_what_a_vault_hides(live: Fleet, ansible: Playbooks) -> None:
    password = "tops3cret-of-the-vault"
    (ansible.folder / "vault-password").write_text("of the vault\n")
    vault = [str(BIN / "ansible-vault"), "encrypt_string", "--vault-password-file", "vault-password", password]
    done = subprocess.run(
        vault, cwd=ansible.folder, capture_output=True, text=True, check=True, env={**os.environ, **ansible.settings}
    )
    (ansible.folder / "secrets.yml").write_text(f"lightship_secrets:\n  TOKEN: {done.stdout}")
    with_vault = ("--vault-password-file", "vault-password", "-e", "@secrets.yml")
    before = live.fingerprints()
    release = live.release
    assert release == live.repository.head
    foretold = ansible.run("lightship.deploy.container", "--check", *with_vault)
    assert live.fingerprints() == before
    ran = ansible.run("lightship.deploy.container", "-vvv", *with_vault)
    assert all(ran.changed.values())
    assert set(foretold.changed.values()) == {3}
    assert password not in ran.output
    for one in live.servers.machines:
        name = one.do(f"docker ps --filter name={live.name}- --format '{{{{.Names}}}}'")
        assert one.do(f"docker exec {name} sh -c 'echo $TOKEN'") == password
        assert password not in one.do(f"cat {live.home}/state/journal {live.home}/state/history* 2>/dev/null || true")
    assert live.currents == dict.fromkeys(live.servers.names, release)
    assert nobody(ansible.run("lightship.deploy.container", *with_vault), live)
    assert nobody(ansible.run("lightship.deploy.full", *with_vault), live)

    # Code and container at once, and back to what lightship.yml says.
    commit = live.new()
    assert all(ansible.run("lightship.deploy.full", "--check").changed.values())
    assert all(ansible.run("lightship.deploy.full").changed.values())
    all_run(live, commit)
    assert nobody(ansible.run("lightship.deploy.full"), live)


INVENTORY = """#!{python}
import json
hosts = {hosts!r}
about = dict(ansible_user="deploy", ansible_python_interpreter="/usr/bin/python3")
print(json.dumps(dict(web=dict(hosts=hosts), _meta=dict(hostvars=dict.fromkeys(hosts, about)))))
"""


def test_variables_instead_of_a_file_a_dynamic_inventory_and_text_that_looks_like_a_template(
    live: Fleet, ansible: Playbooks
) -> None:
    """Whatever a server says, Ansible makes no template of it: here a commit's subject, which its facts hold."""
    touched = ansible.folder / "touched"
    subject = "{{ lookup('pipe', 'touch " + str(touched) + "') }} {{ 6 * 7 }}"
    live.repository.write({"service/more.py": f"# {subject}\n"})
    commit = live.repository.commit(message=subject)
    script = ansible.folder / "inventory.py"
    script.write_text(INVENTORY.format(python=sys.executable, hosts=live.servers.names))
    script.chmod(0o755)
    settings = json.loads((live.folder / "lightship.yml").read_text())["services"][live.name]
    del settings["servers"]
    plain = Playbooks(
        ansible.folder, script, ansible.environment, variables={"service": live.name, "lightship_settings": settings}
    )
    ran = plain.run("lightship.deploy.code", "-v", "--diff")
    all_run(live, commit)
    (ansible.folder / "look.yml").write_text(
        "- import_playbook: lightship.deploy.status\n"
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - debug: {msg: \"subject {{ lightship.releases | map(attribute='subject') | list }}\"}\n"
        "    - debug: {var: lightship}\n"
    )
    looked = plain.run("look.yml")
    assert "6 * 7" in looked.output
    assert "42" not in [word.strip("'\",]") for word in looked.output.split()]
    assert not touched.exists()
    assert "6 * 7" in ran.output
    assert nobody(plain.run("lightship.deploy.code"), live)


def test_setup_brings_servers_to_ready_and_then_changes_nothing(live: Fleet, ansible: Playbooks) -> None:
    variables = {
        "server_root": "/srv/by-ansible",
        "server_directories": ["/srv/app-of-ansible"],
        "server_owner": "deploy",
    }
    for one in live.servers.machines:
        one.do("rm -rf /srv/by-ansible /srv/app-of-ansible")
    foretold = ansible.run("lightship.deploy.setup", "--check", **variables)
    assert live.servers.machines[0].do("ls -d /srv/by-ansible 2>/dev/null || true") == ""
    done = ansible.run("lightship.deploy.setup", **variables)
    assert foretold.changed == done.changed == dict.fromkeys(live.servers.names, 2)
    assert live.servers.machines[0].do("stat -c '%U %a' /srv/app-of-ansible") == "deploy 755"
    assert nobody(ansible.run("lightship.deploy.setup", **variables), live)


def test_the_role_and_a_connection_that_takes_no_input(live: Fleet, ansible: Playbooks) -> None:
    """A playbook of one's own with the role; the connection is given as one that cannot pipeline."""
    commit = live.new()
    (ansible.folder / "connection_plugins").mkdir(exist_ok=True)
    (ansible.folder / "connection_plugins" / "noinput.py").write_text(NO_INPUT)
    (ansible.folder / "site.yml").write_text(
        "- hosts: all\n  gather_facts: false\n  become: true\n  roles:\n    - role: lightship.deploy.service\n"
    )
    variables = {"service_name": live.name, "service_config": str(live.folder / "lightship.yml")}
    ran = ansible.run("site.yml", ansible_connection="noinput", **variables)
    assert all(ran.changed.values())
    all_run(live, commit)
    assert nobody(ansible.run("site.yml", **variables), live)


def test_the_oldest_ansible_that_it_is_for(live: Fleet, ansible: Playbooks) -> None:
    oldest = replace(ansible, bin=environment("oldest"))
    version = subprocess.run([str(oldest.bin / "ansible"), "--version"], capture_output=True, text=True, check=True)
    assert "core 2.15." in version.stdout
    commit = live.new()
    foretold = oldest.run("lightship.deploy.full", "--check", "--diff")
    done = oldest.run("lightship.deploy.full")
    assert done.changed == foretold.changed
    assert all(done.changed.values())
    all_run(live, commit)
    assert nobody(oldest.run("lightship.deploy.code"), live)
    # A failure goes back, and text that looks like a template stays what it is, there too.
    live.repository.write({"service/version.py": "import nothing_of_this_name\n"})
    live.repository.commit(message="{{ 6 * 7 }} {{ nothing_at_all }}")
    ran = oldest.run("lightship.deploy.code", "-v", expect=2)
    assert "nothing_of_this_name" in ran.output
    all_run(live, commit)
    live.goes_on()
    looked = oldest.run("lightship.deploy.status", "-v")
    assert nobody(looked, live)


def test_an_inventory_of_the_cloud(engine: Engine, live: Fleet, ansible: Playbooks) -> None:
    """The EC2 plugin, against a mocked EC2 with twice as many instances as there are servers."""
    programs = environment("ec2")
    inventory = ansible.folder / "shop.aws_ec2.yml"
    inventory.write_text(OF_EC2)
    with mocked_ec2(programs, engine.free_port(), live.servers.names, dict(os.environ)) as found:
        settings = {**ansible.environment, **found}
        cloud = Playbooks(ansible.folder, inventory, settings, programs, dict(ansible.variables))
        commit = live.new()
        ran = cloud.run("lightship.deploy.code", lightship_hosts="stage_production")
        assert ran.recap.keys() == set(live.servers.names)
        assert all(ran.changed.values())
        all_run(live, commit)
        assert nobody(cloud.run("lightship.deploy.code"), live)


def test_an_image_is_built_on_one_host_and_given_to_the_others(
    engine: Engine, servers: Servers, tmp_path: Path
) -> None:
    """Without a registry, through the machine that runs Ansible."""
    files = {"Dockerfile": f"FROM {IMAGE}\nCOPY deploy/marker /marker\n", "deploy/marker": secrets.token_hex(100)}
    settings = {"image": {"dockerfile": "Dockerfile"}, "ports": ["8300:8000"]}
    built = Fleet(engine, tmp_path / "site", servers=servers, files=files, settings=settings)
    try:
        with tempfile.TemporaryDirectory(prefix="ansible-", ignore_cleanup_errors=True) as folder:
            playbooks = playbooks_for(built, Path(folder))
            two = ("--limit", ",".join(servers.names[:2]))
            assert all(playbooks.run("lightship.deploy.full", *two).changed.values())
            assert not any(playbooks.run("lightship.deploy.full", *two).changed.values())
        ask = f"docker inspect --format '{{{{.Image}}}}' $(docker ps -q --filter name={built.name}-)"
        one, two_ = (machine.do(ask) for machine in servers.machines[:2])
        assert one == two_ != ""
    finally:
        built.close()
        for machine in servers.machines:
            machine.do(
                f"docker image ls -q --filter label=lightship.service={built.name} | xargs -r docker image rm -f"
            )


NO_INPUT = """
from ansible.plugins.connection.ssh import Connection as Ssh, DOCUMENTATION as TEXT

DOCUMENTATION = TEXT.replace("name: ssh", "name: noinput")


class Connection(Ssh):
    transport = "noinput"
    has_pipelining = False

    def exec_command(self, cmd, in_data=None, sudoable=True):
        # A file it takes, by the one program that writes it.
        assert not in_data or cmd.startswith("dd of="), "this one takes no input"
        return super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
"""

CLASSIC = """[uwsgi]
http-socket = 0.0.0.0:8000
master = true
chdir = /app
module = service.wsgi:application
touch-reload = /run/app/reload
"""


def test_the_plain_recipe_runs_too(live: Fleet, ansible: Playbooks) -> None:
    commit = live.release
    (ansible.folder / "uwsgi.ini").write_text(CLASSIC)
    variables = {
        "app_name": "plain-shop",
        "app_repository": live.settings["repository"],
        "app_directory": "/srv/plain-shop",
        "app_image": IMAGE,
        "app_options": ["--publish=8200:8000"],
        "app_command": ["/opt/venv/bin/uwsgi", "--ini", "/run/app/uwsgi.ini"],
    }
    recipe = ROOT / "examples" / "plain-ansible"
    try:
        for playbook in ("setup.yml", "deploy.yml"):
            if playbook == "deploy.yml":
                for one in live.servers.machines:
                    one.put("/srv/plain-shop/run/uwsgi.ini", CLASSIC)
            assert all(ansible.run(str(recipe / playbook), **variables).changed.values())
            assert nobody(ansible.run(str(recipe / playbook), **variables), live)
        for one in live.servers.machines:
            assert one.do("git -C /srv/plain-shop/code rev-parse HEAD") == commit
            assert one.do("docker inspect --format '{{.State.Running}}' plain-shop") == "true"
    finally:
        for one in live.servers.machines:
            one.do("docker rm --force plain-shop; rm -rf /srv/plain-shop")
