"""What Supervisor starts as a slot: becomes uWSGI when the slot has something to run, and ends quietly when not.

``launcher.py 0|1``  a slot of the swap: runs what ``instances/<n>.json`` names for it
``launcher.py 2``    only sleeps, and so keeps Supervisor's listening socket open while both slots are stopped
``launcher.py main`` the one uWSGI of the ``touch`` and ``chain`` reload ways
``launcher.py role NAME PROCESS``  a process of a role: becomes its command, in the release that the role is to run
``launcher.py shared PATH ...``  makes shared folders, for what is run in a release before it is booted

Exit status 0 tells Supervisor not to start it again (``exitcodes=0``, ``autorestart=unexpected``).
"""

import json
import os
import pwd
import sys
import time

CODE = os.environ.get("LIGHTSHIP_CODE", "/srv/lightship/code")
RUN = os.environ.get("LIGHTSHIP_RUN", "/srv/lightship/run")
SHARED = os.environ.get("LIGHTSHIP_SHARED", "/srv/lightship/shared")
INSTANCE = os.environ.get("LIGHTSHIP_INSTANCE", "1")
HOLDER = "2"
# Supervisor starts a live slot that ended at once, again and again: leave a second between two tries.
RETRY_SECONDS = 1.0
SILENT = "its process ended before it was up, without an error of Python's: killed (out of memory?), or by itself"


def read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def write_json(path, value):
    """Write a file in one piece. The folder is the workers' own: what they may have put in the way is not followed."""
    temporary = path + ".new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.rename(temporary, path)


def instance_settings():
    return read_json(os.path.join(CODE, "instances", INSTANCE + ".json")) or {}


def is_live(release):
    try:
        return os.path.basename(os.readlink(os.path.join(CODE, "current"))) == release
    except OSError:
        return False


def tried_before(folder, order):
    """Whether this very order was begun already, and came neither up nor to an error of its own.

    That is a process which was killed (out of memory, say) or which ended itself without a word. It would do so again,
    and whoever waits for it would wait until the time for a boot is over.
    """
    begun = read_json(os.path.join(folder, "order.json"))
    booted = read_json(os.path.join(folder, "booted.json"))
    return begun == order and (booted or {}).get("generation") != order["generation"]


def prepare_folder(slot):
    """An empty folder for the slot's announcements, owned by the user that uWSGI becomes."""
    folder = os.path.join(RUN, "slots", slot)
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            import shutil  # noqa: PLC0415 - hardly ever needed: nobody makes directories there, unless to be in the way

            shutil.rmtree(path)
        else:
            os.unlink(path)
    user = pwd.getpwnam(os.environ.get("LIGHTSHIP_USER", "app"))
    os.chown(folder, user.pw_uid, user.pw_gid)
    candidate = os.path.join(RUN, "slots", "candidate")
    os.makedirs(candidate, exist_ok=True)
    os.chown(candidate, user.pw_uid, user.pw_gid)


def prepare_shared(shared):
    """The shared folders that the releases link to, owned by the user that uWSGI becomes; old ones are left alone."""
    user = pwd.getpwnam(os.environ.get("LIGHTSHIP_USER", "app"))
    for path in shared:
        folder = SHARED
        for part in path.split("/"):
            folder = os.path.join(folder, part)
            try:
                os.mkdir(folder)
            except FileExistsError:
                continue
            # The parent may be the workers' own, who could put a link here meanwhile.
            os.chown(folder, user.pw_uid, user.pw_gid, follow_symlinks=False)


def become_uwsgi(slot):
    os.environ["LIGHTSHIP_SLOT"] = slot
    ini = os.environ.get("LIGHTSHIP_UWSGI_INI", "/etc/lightship/uwsgi.ini")
    binary = os.environ.get("LIGHTSHIP_UWSGI", "/opt/venv/bin/uwsgi")
    os.execv(binary, [binary, "--ini", ini])  # noqa: S606 - no shell is wanted


def announce_role(name, process, order):
    """Say which release this process runs. The folder is root's: the service cannot say anything else there."""
    folder = os.path.join(RUN, "roles", name)
    os.makedirs(folder, exist_ok=True)
    told = {"pid": os.getpid(), "release": order["release"], "generation": order["generation"], "time": time.time()}
    write_json(os.path.join(folder, "%s.json" % process), told)


def become_role(name, process):
    """Become the role's command, as the workers' user, in the release's physical path, so that it stays one release."""
    settings = instance_settings()
    order = (settings.get("roles") or {}).get(name) or {}
    command, release = order.get("command"), order.get("release")
    if not command or not release:
        sys.stderr.write("lightship: the role %s has nothing to run here\n" % name)
        time.sleep(RETRY_SECONDS)
        sys.exit(1)
    prepare_shared(settings.get("shared") or ())
    folder = os.path.join(CODE, "releases", release)
    os.chdir(folder)
    announce_role(name, process, order)
    user = pwd.getpwnam(os.environ.get("LIGHTSHIP_USER", "app"))
    path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    os.environ.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name, PYTHONPATH=path)
    os.environ.update(LIGHTSHIP_RELEASE=release, LIGHTSHIP_ROLE=name, LIGHTSHIP_PROCESS=process)
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write("lightship: the role %s cannot run %s: %s\n" % (name, command[0], error.strerror))
        sys.exit(127)


def tell_failure(slot, order, error):
    """Whoever waits for a candidate is told, rather than left to wait: a second try would end the same."""
    if not is_live(order["release"]):
        write_json(os.path.join(RUN, "slots", slot, "failed.json"), {**order, "error": error, "traceback": ""})


def main():
    slot = sys.argv[1]
    if slot == HOLDER:
        os.execvp("sleep", ["sleep", "infinity"])  # noqa: S606
    if slot == "shared":
        prepare_shared(sys.argv[2:])
        return
    if slot == "role":
        become_role(sys.argv[2], sys.argv[3])
    settings = instance_settings()
    if slot == "main" and not settings.get("web", True):
        # There is no web role on this server, and Supervisor is to leave it at that.
        os.execvp("sleep", ["sleep", "infinity"])  # noqa: S606
    if slot != "main":
        order = (settings.get("slots") or {}).get(slot)
        if order is None:
            return
        folder = os.path.join(RUN, "slots", slot)
        failure = read_json(os.path.join(folder, "failed.json"))
        silent = tried_before(folder, order)
        if silent or (failure and failure.get("generation") == order["generation"]):
            if not is_live(order["release"]):
                # A candidate is tried once; what is live is tried until it comes up.
                if silent and not failure:
                    write_json(os.path.join(folder, "failed.json"), {**order, "error": SILENT, "traceback": ""})
                return
            time.sleep(RETRY_SECONDS)
    prepare_folder(slot)
    try:
        prepare_shared(settings.get("shared") or ())
    except OSError as error:
        if slot != "main":
            tell_failure(slot, order, "the shared path %s cannot be had: %s" % (error.filename, error.strerror))
        raise
    if slot != "main":
        write_json(os.path.join(RUN, "slots", slot, "order.json"), order)
    become_uwsgi(slot)


if __name__ == "__main__":
    main()
