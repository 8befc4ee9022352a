# MIT license, see LICENSE.
"""Documentation of the module; the action plugin of its name does the work."""

DOCUMENTATION = r"""
module: commit
short_description: Write a release down as stable, when the whole rollout has passed
version_added: 0.1.0
description:
  - Fails when too many hosts have failed, so that a rescue block takes the others back.
  - Fails on a host on which something failed before.
extends_documentation_fragment:
  - lightship.deploy.task
  - lightship.deploy.task.rollout
author:
  - The lightship authors (@lightship)
"""

EXAMPLES = r"""
- name: Commit, or go back where the rollout failed
  block:
    - name: Commit the release
      lightship.deploy.commit:
        rollout: "{{ lightship_rollout.rollout }}"
  rescue:
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
