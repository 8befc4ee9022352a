# MIT license, see LICENSE.
"""Documentation of the module; the action plugin of its name does the work."""

DOCUMENTATION = r"""
module: prepare
short_description: Do everything that is done before a release goes live
version_added: 0.1.0
description:
  - Fetches the commit, lays out the release, runs checks and migrations, and boots it beside what serves.
  - Nothing that serves is changed. Migrations run on the first host that changes, and the others wait for that.
  - In check mode it plans, without the lock.
attributes:
  check_mode:
    description: Can run in check mode, and then changes nothing.
    support: full
  diff_mode:
    description: Says what differs.
    support: full
  action:
    description: An action plugin; nothing is copied to the server but lightship's agent.
    support: full
options:
  rollout:
    description: What M(lightship.deploy.resolve) registered as RV(lightship.deploy.resolve#module:rollout).
    type: str
    required: true
notes:
  - It runs where Ansible does, and needs the Python package C(lightship) of the collection's version beside ansible-core.
  - On the servers Python 3.9 or later is enough.
author:
  - The lightship authors (@lightship)
"""

EXAMPLES = r"""
- name: Prepare the release
  lightship.deploy.prepare:
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
