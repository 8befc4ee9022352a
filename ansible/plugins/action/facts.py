# MIT license, see LICENSE.
"""What a host runs of a service."""

from __future__ import annotations

from ansible_collections.lightship.deploy.plugins.plugin_utils.base import ROLLOUT, LightshipAction


class ActionModule(LightshipAction):
    """Looks at the host; nothing is changed."""

    SPEC = ROLLOUT

    async def work(self, options):
        """Look, and return it as the fact lightship."""
        from lightship.playbook.look import facts, told

        found = told(await facts(self.job(options), self.place()))
        return {"changed": False, "ansible_facts": {"lightship": found}, "msg": summary(found)}


def summary(found):
    """What it runs, in a line."""
    if not found["current"]:
        return "no release"
    state = "serves" if found["ready"] else "does not serve as it should"
    return f"{found['current'][:12]} {state}, {found['workers']} workers"
