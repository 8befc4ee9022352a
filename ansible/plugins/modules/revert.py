# MIT license, see LICENSE.
"""Documentation of the module; the action plugin of its name does the work."""

DOCUMENTATION = r"""
module: revert
short_description: Take a host back to what ran before, or undo what was prepared there
version_added: 0.1.0
description:
  - For rescue blocks.
options:
  last:
    description: Whether it is the last word of the rollout. Then it fails, and says what each host runs.
    type: bool
    default: true
extends_documentation_fragment:
  - lightship.deploy.task
  - lightship.deploy.task.rollout
author:
  - The lightship authors (@lightship)
"""

EXAMPLES = r"""
- name: Go back, and say what the hosts run
  lightship.deploy.revert:
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
"""
