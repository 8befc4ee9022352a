# MIT license, see LICENSE.
"""Documentation of the module; the action plugin of its name does the work."""

DOCUMENTATION = r"""
module: setup
short_description: Bring a host to ready
version_added: 0.1.0
description:
  - Installs git and the Docker engine on Debian and Ubuntu where they are missing, and makes the directory of the services.
options:
  root:
    description: The directory that services live in.
    type: path
    default: /srv/lightship
extends_documentation_fragment:
  - lightship.deploy.task
author:
  - The lightship authors (@lightship)
"""

EXAMPLES = r"""
- name: Bring the server to ready
  lightship.deploy.setup:
    root: /srv/lightship
"""

RETURN = r"""
items:
  description: What a server needs, each with its state, V(ok), V(change) or V(person) where only somebody there can do it.
  returned: success
  type: list
  elements: dict
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
