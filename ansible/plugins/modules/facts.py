# MIT license, see LICENSE.
"""Documentation of the module; the action plugin of its name does the work."""

DOCUMENTATION = r"""
module: facts
short_description: Look at what a host runs of a service
version_added: 0.1.0
description:
  - Returns it as the fact C(lightship). Nothing is changed, and no lock is taken.
  - "Texts that come from the server are data: Ansible makes no template of them."
extends_documentation_fragment:
  - lightship.deploy.task
  - lightship.deploy.task.rollout
author:
  - The lightship authors (@lightship)
"""

EXAMPLES = r"""
- name: Look at the host
  lightship.deploy.facts:
    rollout: "{{ lightship_rollout.rollout }}"

- name: Say what it runs
  ansible.builtin.debug:
    msg: "{{ lightship.current }}"
"""

RETURN = r"""
ansible_facts:
  description: What was seen.
  returned: success
  type: dict
  contains:
    lightship:
      description: The releases that are there and the one that is live, the container, workers and roles.
      returned: success
      type: dict
msg:
  description: What it runs, in a line.
  returned: always
  type: str
"""
