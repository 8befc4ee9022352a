# MIT license, see LICENSE.
"""Make a prepared release live, and see that every worker runs it."""

from __future__ import annotations

from ansible_collections.lightship.deploy.plugins.plugin_utils.base import LiveAction


class ActionModule(LiveAction):
    """Activates the host, and verifies it."""

    part = "activate"
