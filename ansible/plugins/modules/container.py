# MIT license, see LICENSE.
"""Documentation of the module; the action plugin of its name does the work."""

DOCUMENTATION = r"""
module: container
short_description: Have the image of the next container on the hosts
version_added: 0.1.0
description:
  - In four tasks, each of which acts on the host that leads or on all others.
  - Without a registry what the others lack of the image goes through the machine that runs Ansible, and its memory.
options:
  state:
    description:
      - V(built) has it built, pulled and pushed as configured, on the host that leads.
      - V(wanted) pulls it on the others, or finds what they lack.
      - V(given) takes that from the host that leads.
      - V(present) has it on the others.
    type: str
    choices: [built, wanted, given, present]
    required: true
extends_documentation_fragment:
  - lightship.deploy.task
  - lightship.deploy.task.rollout
author:
  - The lightship authors (@lightship)
"""

EXAMPLES = r"""
- name: Have the image on one host
  lightship.deploy.container:
    rollout: "{{ lightship_rollout.rollout }}"
    state: built

- name: Pull it on the others, or see what they lack
  lightship.deploy.container:
    rollout: "{{ lightship_rollout.rollout }}"
    state: wanted

- name: Give away what they lack
  lightship.deploy.container:
    rollout: "{{ lightship_rollout.rollout }}"
    state: given

- name: Have it on the others
  lightship.deploy.container:
    rollout: "{{ lightship_rollout.rollout }}"
    state: present
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
