# MIT license, see LICENSE.
"""Find out, once for all hosts, what a rollout is about."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.lightship.deploy.plugins.plugin_utils.base import LightshipAction

from ansible import constants


class ActionModule(LightshipAction):
    """Reads the configuration, asks the git host, gets the secrets."""

    _requires_connection = False
    SPEC = {
        "service": {"type": "str"},
        "config": {"type": "path"},
        "stage": {"type": "str"},
        "settings": {"type": "dict", "no_log": True},
        "kind": {"type": "str", "choices": ["code", "container", "full", "rollback"], "default": "code"},
        "ref": {"type": "str"},
        "commit": {"type": "str"},
        "to": {"type": "str"},
        "retry": {"type": "bool", "default": False},
        "force": {"type": "bool", "default": False},
        "wait": {"type": "float", "default": 0.0},
        "take_over": {"type": "bool", "default": False},
        "skip_unreachable": {"type": "bool", "default": False},
        "max_fail_percentage": {"type": "float"},
        "held_seconds": {"type": "float", "default": 600.0},
        "whole_image": {"type": "bool", "default": False},
        "hosts": {"type": "list", "elements": "str"},
        "roles": {"type": "dict", "default": {}},
        "secrets": {"type": "dict", "default": {}, "no_log": True},
    }

    async def work(self, options):
        """Resolve, and return it sealed for the other modules."""
        from lightship.operations.deploy import Wanted
        from lightship.playbook.job import Job, Source
        from lightship.playbook.resolve import Given, resolve, told

        config = options["config"]
        settings = options["settings"]
        source = Source(
            config=str(Path(config).absolute()) if config else (self._loader.get_basedir() if settings else None),
            service=plain(options["service"]),
            stage=plain(options["stage"]),
            settings=plain(settings),
        )
        job = Job(
            source=source,
            kind=str(options["kind"]),
            hosts=tuple(map(str, options["hosts"] or self._vars["ansible_play_hosts_all"])),
            folder="",
            to=plain(options["to"]),
            retry=options["retry"],
            force=options["force"],
            wait=options["wait"],
            take_over=options["take_over"],
            skip_unreachable=options["skip_unreachable"],
            most_failures=options["max_fail_percentage"],
            silence=options["held_seconds"],
            whole_image=options["whole_image"],
        )
        wanted = Wanted(ref=plain(options["ref"]), commit=plain(options["commit"]), retry=options["retry"])
        given = Given(roles=self._roles(job.hosts, plain(options["roles"])), secrets=plain(options["secrets"]))
        found = await resolve(job, wanted, given, Path(constants.DEFAULT_LOCAL_TMP), self._tell)
        return {"changed": False, "rollout": found.job.sealed(), "_ansible_no_log": True, **told(found)}

    def _roles(self, hosts, given):
        """The roles of each host: as the option says, or its variable lightship_roles."""
        found = dict(given)
        for host in hosts:
            own = self._vars["hostvars"][host].get("lightship_roles") if host not in found else None
            if own is not None:
                found[host] = plain(own if isinstance(own, (list, tuple)) else [own])
        return found


def plain(value):
    """A value without what Ansible marks it with."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    # What is neither is text, and so is what a vault hides, which is of a class of its own.
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
