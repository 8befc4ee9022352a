# MIT license, see LICENSE.
"""Documentation of the module; the action plugin of its name does the work."""

DOCUMENTATION = r"""
module: rollback
short_description: Prepare a host to go back to a release that it has
version_added: 0.1.0
description:
  - Nobody is asked, neither the git host nor a registry.
  - M(lightship.deploy.activate) and M(lightship.deploy.commit) finish it as they do a deploy.
attributes:
  diff_mode:
    support: full
extends_documentation_fragment:
  - lightship.deploy.task
  - lightship.deploy.task.rollout
author:
  - The lightship authors (@lightship)
"""

EXAMPLES = r"""
- name: Prepare the way back
  lightship.deploy.rollback:
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
