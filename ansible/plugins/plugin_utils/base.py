# MIT license, see LICENSE.
"""What the action plugins have in common: the way to the host, and how what came of it is told.

They run where Ansible does, with the Python package lightship beside ansible-core. On the servers there is nothing but
its agent.
"""

from __future__ import annotations

import asyncio
import shlex
import sys

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.unsafe_proxy import wrap_var

VERSION = "0.1.0"
"""The collection's own, and that of the package it needs."""

try:
    import lightship
    from lightship import playbook
    from lightship.errors import LightshipError, TransportError
    from lightship.playbook.job import Job
    from lightship.playbook.place import Place
    from lightship.rollout import is_unreachable
    from lightship.transport.held import python_for
    from lightship.transport.shell import Ran

    # Ansible loads a plugin before it starts a process for each host, and so each of them finds it done.
    playbook.warm()
    FOUND = lightship.__version__
    MISSING = ""
except ImportError as error:
    FOUND = ""
    MISSING = str(error)
    LightshipError = RuntimeError

display = Display()


def require_lightship():
    """Say what is missing, before anything is done."""
    if not FOUND:
        raise AnsibleActionFail(
            f"The Python package lightship is not installed beside ansible-core ({MISSING}). Install it for the "
            f"interpreter that runs Ansible: {sys.executable} -m pip install lightship=={VERSION}"
        )
    if FOUND != VERSION:
        raise AnsibleActionFail(
            f"This is the collection lightship.deploy {VERSION}, and the Python package lightship beside ansible-core "
            f"is {FOUND}. Install the same version of both: {sys.executable} -m pip install lightship=={VERSION}"
        )


ROLLOUT = {"rollout": {"type": "str", "required": True, "no_log": True}}
"""The option of every module of a rollout but the first."""


class LightshipAction(ActionBase):
    """An action plugin of the collection. ``work`` does what the module is for, and returns its result."""

    SPEC = {}
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp=None, task_vars=None):
        """Check the options, do the work, and tell a failure as one of this host."""
        result = super().run(tmp, task_vars)
        _found, options = self.validate_argument_spec(argument_spec=self.SPEC)
        require_lightship()
        self._lost = None
        self._vars = task_vars or {}
        try:
            result.update(asyncio.run(self.work(options)))
        except LightshipError as error:
            if is_unreachable(error) and self._lost is not None:
                raise self._lost from error
            result.update(failed=True, msg=shown(error), code=error.code, hint=error.hint)
            output = str(error.detail.get("output") or "")
            if output:
                result["output_lines"] = output.splitlines()[-200:]
        # What a server says is data: whatever it looks like, nothing makes a template of it.
        return wrap_var(result)

    async def work(self, options):
        """What the module is for."""
        raise NotImplementedError

    def job(self, options):
        """The rollout, as lightship.deploy.resolve found it out."""
        return Job.unsealed(str(options["rollout"]))

    def place(self):
        """This host."""
        name = self._vars["inventory_hostname"]
        return Place(name, self._run, python_for(self._vars.get("ansible_python_interpreter")), self._tell)

    def _tell(self, text):
        display.vv(f"<{self._vars['inventory_hostname']}> {text}")

    def _run(self, command, data):
        """Run a command on the host, by whatever connection and become plugin are configured for it."""
        try:
            if self._connection.has_pipelining:
                found = self._low_level_execute_command(command, in_data=data)
            else:
                found = self._through_a_file(command, data)
        except AnsibleConnectionFailure as error:
            self._lost = error
            name = self._vars["inventory_hostname"]
            raise TransportError(f"{name} cannot be reached: {error}", code="ssh-unreachable") from error
        out = found["stdout"].encode("utf-8", "surrogateescape")
        return Ran(found["rc"], out, found["stderr"].strip())

    def _through_a_file(self, command, data):
        """The same where a connection takes no input: it is written to a file there, of nobody else, and removed."""
        folder = self._make_tmp_path()
        try:
            path = self._connection._shell.join_path(folder, "input")
            self._transfer_data(path, data)
            self._fixup_perms2((folder, path), execute=False)
            return self._low_level_execute_command(f"{command} <{shlex.quote(path)}")
        finally:
            self._remove_tmp_path(folder)


class PreparingAction(LightshipAction):
    """Prepares the host for what the rollout is about, a deploy or the way back, or in check mode plans it."""

    SPEC = ROLLOUT

    async def work(self, options):
        """Prepare, and tell the plan."""
        from lightship.playbook.prepare import prepare, told

        done = await prepare(self.job(options), self.place(), check=self._task.check_mode)
        result = {"changed": done.changed, "msg": done.message, "warnings": list(done.warnings)}
        if done.plan is not None:
            result["plan"] = told(done.plan)
            if self._task.diff:
                result["diff"] = diff_of(done.plan)
        return result


class LiveAction(LightshipAction):
    """Does a part of what comes after the barrier (``part`` of ``lightship.playbook.live``), or foretells it."""

    SPEC = ROLLOUT
    part = ""

    async def work(self, options):
        """Do it; what fails on the host has gone back there, or says why it has to."""
        from lightship.playbook import live

        work = live.foretold if self._task.check_mode else getattr(live, self.part)
        done = await work(self.job(options), self.place())
        return {"changed": done.changed, "msg": done.message}


def shown(error):
    """An error in one text: what happened, and what to do."""
    return f"{error.message}\n{error.hint}" if error.hint else error.message


def diff_of(plan):
    """What a plan changes, as --diff shows it."""
    before, after = [f"commit: {plan.change.live or 'none'}"], [f"commit: {plan.commit}"]
    after += [f"{one.status} {one.path}" for one in plan.change.files]
    if plan.change.files_count > len(plan.change.files):
        after.append(f"and {plan.change.files_count - len(plan.change.files)} more files")
    if plan.replaces_container:
        after += [f"container: {reason}" for reason in plan.why]
    if plan.nothing_to_do:
        after = before
    return {
        "before": "\n".join(before) + "\n",
        "after": "\n".join(after) + "\n",
        "before_header": "live",
        "after_header": "wanted",
    }
