# MIT license, see LICENSE.
"""What the documentation of all modules says alike."""


class ModuleDocFragment:
    """The parts that modules name in ``extends_documentation_fragment``."""

    DOCUMENTATION = r"""
attributes:
  check_mode:
    description: Can run in check mode, and then changes nothing.
    support: full
  diff_mode:
    description: Says what differs.
    support: none
  action:
    description: An action plugin; nothing is copied to the server but lightship's agent.
    support: full
notes:
  - >-
    It runs where Ansible does, and needs the Python package C(lightship) of the collection's version beside
    ansible-core.
  - On the servers Python 3.9 or later is enough.
"""

    ROLLOUT = r"""
options:
  rollout:
    description: What M(lightship.deploy.resolve) registered as RV(lightship.deploy.resolve#module:rollout).
    type: str
    required: true
"""
