# MIT license, see LICENSE.
"""Take a host back to what ran before, or undo what was prepared there."""

from __future__ import annotations

from ansible_collections.lightship.deploy.plugins.plugin_utils.base import ROLLOUT, LightshipAction, shown


class ActionModule(LightshipAction):
    """Goes back."""

    SPEC = {
        **ROLLOUT,
        "last": {"type": "bool", "default": True},
    }

    async def work(self, options):
        """Go back. As the last word of a rollout it fails, and says what each host runs."""
        if self._task.check_mode:
            return {"changed": False, "msg": "nothing was changed"}
        from lightship.playbook.live import revert

        done = await revert(self.job(options), self.place(), last=options["last"])
        failed = done.paper.failure
        result = {"changed": done.changed, "msg": done.message, "failed": options["last"]}
        if failed is not None:
            result["msg"] = f"{shown(failed)}\n{done.message}"
            result["code"] = failed.code
        return result
