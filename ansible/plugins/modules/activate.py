# MIT license, see LICENSE.
"""Documentation of the module; the action plugin of its name does the work."""

DOCUMENTATION = r"""
module: activate
short_description: Make a prepared release live, and see that every worker runs it
version_added: 0.1.0
description:
  - Refuses unless all hosts of the rollout have prepared.
  - A host on which it fails has gone back to what ran before when this module fails.
extends_documentation_fragment:
  - lightship.deploy.task
  - lightship.deploy.task.rollout
author:
  - The lightship authors (@lightship)
"""

EXAMPLES = r"""
- name: Activate the release and see that it serves
  lightship.deploy.activate:
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
