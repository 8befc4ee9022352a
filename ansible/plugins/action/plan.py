# MIT license, see LICENSE.
"""What a rollout would change on a host, with its lock held for what comes next."""

from __future__ import annotations

from ansible_collections.lightship.deploy.plugins.plugin_utils.base import ROLLOUT, LightshipAction


class ActionModule(LightshipAction):
    """Plans the host."""

    SPEC = ROLLOUT

    async def work(self, options):
        """Plan, and hold the agent."""
        from lightship.playbook.prepare import plan, prepare, told

        job, place = self.job(options), self.place()
        # In check mode nothing is held, and preparing foretells the same.
        done = await (prepare(job, place, check=True) if self._task.check_mode else plan(job, place))
        result = {"changed": False, "msg": done.message}
        if done.plan is not None:
            result["plan"] = told(done.plan)
        return result
