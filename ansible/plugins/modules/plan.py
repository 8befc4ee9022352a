# MIT license, see LICENSE.
"""Documentation of the module; the action plugin of its name does the work."""

DOCUMENTATION = r"""
module: plan
short_description: Plan a rollout on a host, and hold its lock
version_added: 0.1.0
description:
  - Sees what the commit changes here, and leaves the agent on the server for the modules that come next.
  - Needed before M(lightship.deploy.container), and before M(lightship.deploy.rollback) without a release that is named.
extends_documentation_fragment:
  - lightship.deploy.task
  - lightship.deploy.task.rollout
author:
  - The lightship authors (@lightship)
"""

EXAMPLES = r"""
- name: Plan
  lightship.deploy.plan:
    rollout: "{{ lightship_rollout.rollout }}"
"""

RETURN = r"""
msg:
  description: What was done, in a line.
  returned: always
  type: str
  sample: 1ded9e2 is live and was seen to serve
code:
  description: What went wrong, in a word that does not change.
  returned: failure
  type: str
  sample: boot-failed
plan:
  description: What the rollout changes on this host, and why.
  returned: success
  type: dict
"""
