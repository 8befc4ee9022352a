# MIT license, see LICENSE.
"""Everything that is done before a release goes live."""

from __future__ import annotations

from ansible_collections.lightship.deploy.plugins.plugin_utils.base import PreparingAction


class ActionModule(PreparingAction):
    """Prepares the host, or in check mode plans it."""
