# MIT license, see LICENSE.
"""Write a release down as stable, once the whole rollout has passed."""

from __future__ import annotations

from ansible_collections.lightship.deploy.plugins.plugin_utils.base import LiveAction


class ActionModule(LiveAction):
    """Commits the host, or says why it has to go back."""

    part = "commit"
