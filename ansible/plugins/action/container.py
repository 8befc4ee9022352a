# MIT license, see LICENSE.
"""The image of the next container, on the host that leads and then on the others."""

from __future__ import annotations

from ansible_collections.lightship.deploy.plugins.plugin_utils.base import ROLLOUT, LightshipAction


class ActionModule(LightshipAction):
    """Has the image ready."""

    SPEC = {
        **ROLLOUT,
        "state": {"type": "str", "choices": ["built", "wanted", "given", "present"], "required": True},
    }

    async def work(self, options):
        """Lead or follow."""
        if self._task.check_mode:
            return {"changed": False, "msg": "not in check mode: lightship.deploy.prepare foretells the container"}
        from lightship.playbook.image import work

        done = await work(options["state"], self.job(options), self.place())
        return {"changed": done.changed, "msg": done.message, "warnings": list(done.warnings)}
