# MIT license, see LICENSE.
"""Bring a host to ready: git, Docker, the directory."""

from __future__ import annotations

from ansible_collections.lightship.deploy.plugins.plugin_utils.base import LightshipAction


class ActionModule(LightshipAction):
    """Sets the host up, or in check mode says what it lacks."""

    SPEC = {"root": {"type": "path", "default": "/srv/lightship"}}

    async def work(self, options):
        """Look, and change what is not as it should be."""
        from lightship.playbook.look import setup

        done = await setup(self.place(), options["root"], check=self._task.check_mode)
        items = [{"name": one.name, "state": one.state, "message": one.message, "hint": one.hint} for one in done.items]
        if done.error is not None:
            raise done.error
        result = {"changed": done.changed > 0, "items": items}
        person = [one for one in done.items if one.state == "person"]
        told = [f"{one.name}: {one.message}" for one in done.items if one.state != "ok"]
        result["msg"] = "; ".join(told) or "ready"
        if person:
            result["failed"] = True
            result["hint"] = "; ".join(one.hint for one in person if one.hint)
        return result
