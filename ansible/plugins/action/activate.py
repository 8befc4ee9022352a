# MIT license, see LICENSE.
"""Make a prepared release live, and see that every worker runs it."""

from __future__ import annotations

from ansible_collections.lightship.deploy.plugins.plugin_utils.base import LightshipAction


class ActionModule(LightshipAction):
    """Activates the host, and verifies it."""

    SPEC = {"rollout": {"type": "str", "required": True, "no_log": True}}

    async def work(self, options):
        """Activate; a host that fails has gone back when this fails."""
        from lightship.playbook.live import activate, foretold

        work = foretold if self._task.check_mode else activate
        done = await work(self.job(options), self.place())
        return {"changed": done.changed, "msg": done.message}
