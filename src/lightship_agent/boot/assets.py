"""Removes static files that no release of the last days had; the others stay, for pages that were loaded before.

``assets.py DIRECTORY SECONDS``, in the container, as the workers' user. Django's ``collectstatic`` with a manifest
(``ManifestStaticFilesStorage``) gives each content a name of its own and leaves earlier ones where they are, so that a
page from before a deploy finds its scripts. Nothing ever removes them; this does, when their last release is long
enough ago. When that was is kept in a file beside them. Without a manifest nothing is known, and nothing is removed.
"""

import json
import os
import sys
import time

SHARED = os.environ.get("LIGHTSHIP_SHARED", "/srv/lightship/shared")
MANIFEST = "staticfiles.json"
RECORD = ".lightship-assets.json"
# What may lie beside a file, made of it.
COMPRESSED = (".gz", ".br", ".zst")


def read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def names_in_use(folder):
    """The files of the release whose manifest lies there, by original and by hashed name; none without one."""
    paths = read_json(os.path.join(folder, MANIFEST)).get("paths")
    if not isinstance(paths, dict) or not paths:
        return set()
    return {*map(str, paths), *map(str, paths.values()), MANIFEST, RECORD}


def files_below(folder):
    for place, _, names in os.walk(folder):
        for name in names:
            yield os.path.relpath(os.path.join(place, name), folder)


def is_used(name, used):
    root, extension = os.path.splitext(name)
    return name in used or (extension in COMPRESSED and root in used)


def look(names, used, seen, now, seconds):
    """When each file was last of a release, and which are to go. One that is seen for the first time is of today."""
    last = {}
    for name in names:
        moment = now if is_used(name, used) else seen.get(name, now)
        last[name] = moment if isinstance(moment, (int, float)) and moment <= now else now
    gone = [name for name in last if now - last[name] > seconds]
    return {name: moment for name, moment in last.items() if name not in set(gone)}, gone


def sweep(folder, seconds):
    """Remove what is past its time; how many files there are, and how many went."""
    used = names_in_use(folder)
    if not used:
        return {"files": 0, "removed": 0, "problem": "there is no %s in %s: nothing was removed" % (MANIFEST, folder)}
    record = read_json(os.path.join(folder, RECORD))
    seen, before = record.get("seen"), record.get("used")
    # The release before this one was in use until now, however long ago it was deployed.
    served = used | set(map(str, before if isinstance(before, list) else ()))
    kept, gone = look(files_below(folder), served, seen if isinstance(seen, dict) else {}, time.time(), seconds)
    temporary = os.path.join(folder, RECORD + ".new")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"version": 1, "seen": kept, "used": sorted(used)}, file)
    os.rename(temporary, os.path.join(folder, RECORD))
    for name in gone:
        os.unlink(os.path.join(folder, name))
    return {"files": len(kept), "removed": len(gone), "problem": ""}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(sweep(os.path.join(SHARED, sys.argv[1]), float(sys.argv[2]))) + "\n")
