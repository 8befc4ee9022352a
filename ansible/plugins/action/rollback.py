# MIT license, see LICENSE.
"""Prepare a host to go back to a release that it has."""

from __future__ import annotations

from ansible_collections.lightship.deploy.plugins.plugin_utils.base import PreparingAction


class ActionModule(PreparingAction):
    """Prepares the way back, which the same tasks finish as that of a deploy."""
