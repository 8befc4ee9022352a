# MIT license, see LICENSE.
"""Write a release down as stable, once the whole rollout has passed."""

from __future__ import annotations

from ansible_collections.lightship.deploy.plugins.plugin_utils.base import LightshipAction


class ActionModule(LightshipAction):
    """Commits the host, or says why it has to go back."""

    SPEC = {"rollout": {"type": "str", "required": True, "no_log": True}}

    async def work(self, options):
        """Commit."""
        from lightship.playbook.live import commit, foretold

        work = foretold if self._task.check_mode else commit
        done = await work(self.job(options), self.place())
        return {"changed": done.changed, "msg": done.message}
