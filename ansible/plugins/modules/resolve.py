# MIT license, see LICENSE.
"""Documentation of the module; the action plugin of its name does the work."""

DOCUMENTATION = r"""
module: resolve
short_description: Find out what a rollout is about
version_added: 0.1.0
description:
  - "Reads the configuration, asks the git host for the commit, and gets the secrets: once, for all hosts of the play."
  - The other modules of the collection take what it returns.
options:
  service:
    description: The service's name; not needed when the configuration has one.
    type: str
  config:
    description: The C(lightship.yml). Without it the nearest one is read, from the working directory upwards.
    type: path
  stage:
    description: The stage, where the service has some.
    type: str
  settings:
    description: The service's keys as they stand in C(lightship.yml), for those who have no such file.
    type: dict
  kind:
    description:
      - V(code) deploys code and leaves the container as it is.
      - V(container) makes a new container where it is not as configured, on the new code.
      - V(full) does whatever is needed.
      - V(rollback) goes back to a release that the hosts have.
    type: str
    choices: [code, container, full, rollback]
    default: code
  ref:
    description: The branch or tag. Without it the service's branch is deployed.
    type: str
  commit:
    description: The commit, with all its digits.
    type: str
  to:
    description: With O(kind=rollback), the release to go back to. Without it the one before this on most hosts.
    type: str
  retry:
    description: Deploy a release once more that failed before.
    type: bool
    default: false
  force:
    description: Deploy even what is live already.
    type: bool
    default: false
  wait:
    description: Seconds to wait for whoever holds the lock of the service.
    type: float
    default: 0
  take_over:
    description: End whoever holds the lock once the waiting was in vain.
    type: bool
    default: false
  skip_unreachable:
    description: Go on without hosts that cannot be reached.
    type: bool
    default: false
  max_fail_percentage:
    description: The percentage of hosts that may fail before all go back. Without it C(rollout.max_failures) counts.
    type: float
  held_seconds:
    description: Seconds after which an agent that no task speaks to undoes or finishes what is open, and ends.
    type: float
    default: 600
  whole_image:
    description: Send an image with all its layers to hosts that have no registry, for engines that take no other.
    type: bool
    default: false
  hosts:
    description: The hosts of the rollout. Without it all hosts of the play.
    type: list
    elements: str
  roles:
    description: The roles that hosts play, by the host's name. For others their variable C(lightship_roles) counts, or C(lightship.yml).
    type: dict
    default: {}
  secrets:
    description: Values of secret variables of the container by their names, as from a vault.
    type: dict
    default: {}
extends_documentation_fragment:
  - lightship.deploy.task
author:
  - The lightship authors (@lightship)
"""

EXAMPLES = r"""
- name: Resolve what is deployed
  lightship.deploy.resolve:
    service: shop
    kind: code
    secrets:
      SECRET_KEY: "{{ vault_secret_key }}"
  register: lightship_rollout
  run_once: true
"""

RETURN = r"""
rollout:
  description: The rollout for the other modules, as one text. It has the secrets in it, and is not shown.
  returned: success
  type: str
service:
  description: The service's name.
  returned: success
  type: str
kind:
  description: What is done.
  returned: success
  type: str
ref:
  description: The branch or tag that was found.
  returned: success
  type: str
commit:
  description: The commit that is deployed.
  returned: success
  type: str
hosts:
  description: The hosts of the rollout, in their order.
  returned: success
  type: list
  elements: str
serial:
  description: The batches as Ansible's C(serial) takes them, by C(rollout) in C(lightship.yml).
  returned: success
  type: list
  elements: str
"""
