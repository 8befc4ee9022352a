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
  diff_mode:
    support: full
extends_documentation_fragment:
  - lightship.deploy.task
  - lightship.deploy.task.rollout
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
