# MIT license, see LICENSE.
"""Everything that is done before a release goes live."""

from __future__ import annotations

from ansible_collections.lightship.deploy.plugins.plugin_utils.base import LightshipAction, diff_of


class ActionModule(LightshipAction):
    """Prepares the host, or in check mode plans it."""

    SPEC = {"rollout": {"type": "str", "required": True, "no_log": True}}

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
