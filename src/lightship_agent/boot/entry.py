"""What uWSGI loads: imports one release, proves that it answers, announces every worker, and keeps the gate.

Runs inside the container, under the image's own Python (3.8 or later) and with the service's packages. It is delivered
with the agent and mounted read-only, so it always speaks the same words as the agent that reads its announcements.

In a *slot* (``LIGHTSHIP_SLOT`` is 0 or 1) the release is the one that ``instances/<n>.json`` names, and the workers
wait at the gate until ``current`` names that release too. In the single uWSGI of the ``touch`` and ``chain`` reload
ways (``LIGHTSHIP_SLOT`` is ``main``) the release is whatever ``current`` named when this file was loaded, and there is
no gate.

As a program (``entry.py --candidate COMMIT``) it imports and tests a release without uWSGI: the candidate of
``touch`` and ``chain``.
"""

import contextlib
import io
import json
import os
import sys
import time
import traceback

CODE = os.environ.get("LIGHTSHIP_CODE", "/srv/lightship/code")
RUN = os.environ.get("LIGHTSHIP_RUN", "/srv/lightship/run")
INSTANCE = os.environ.get("LIGHTSHIP_INSTANCE", "1")
SLOT = os.environ.get("LIGHTSHIP_SLOT", "main")
CURRENT = os.path.join(CODE, "current")

# How often a worker at the gate looks at `current`: what a flip can add to the time until the first new response.
GATE_INTERVAL = 0.005
# A parked worker is only wanted again by a revert, and may stay parked for as long as a soak: it looks less often.
PARKED_INTERVAL = 0.02
# How often a worker writes its counts down: what a soak sees is never older than the next request after that.
COUNT_INTERVAL = 0.2
GATE_SIGNAL = 17
CLOSED = os.path.join(CODE, "closed-" + INSTANCE)
CLOSED_SECONDS = 60.0
OPENED = os.path.join(CODE, "opened-" + INSTANCE)
TRACEBACK_LIMIT = 64 * 1024


class SelfTestError(Exception):
    """The application was imported, and then failed to answer its health path."""


def current_release():
    """The commit that ``current`` names now, or an empty string."""
    try:
        return os.path.basename(os.readlink(CURRENT))
    except OSError:
        return ""


def opened_release():
    """The commit that this instance serves beside another one, whatever ``current`` names, or an empty string."""
    try:
        with open(OPENED, encoding="ascii") as file:
            return file.read(100).strip()
    except (OSError, ValueError):
        return ""


def instance_settings():
    with open(os.path.join(CODE, "instances", INSTANCE + ".json"), encoding="utf-8") as file:
        return json.load(file)


class Announcer:
    """Writes this slot's announcements, each in one piece, where the host reads them."""

    def __init__(self, slot, release, generation):
        self.folder = os.path.join(RUN, "slots", slot)
        self.release = release
        self.generation = generation

    def write(self, name, **fields):
        fields.update(release=self.release, generation=self.generation, pid=os.getpid(), time=time.time())
        path = os.path.join(self.folder, name)
        temporary = "%s.%d" % (path, os.getpid())
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(fields, file)
            os.rename(temporary, path)
        except OSError as error:
            # A disk that is full must not fail a request, nor let a worker past its gate. The host takes a worker that
            # it hears nothing of for one that does not serve.
            sys.stderr.write("lightship: %s cannot be written: %s\n" % (path, error))
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def worker(self, number, state):
        self.write("worker-%d.json" % number, worker=number, state=state)

    def forget_failure(self):
        """What an earlier boot left here is not to be taken for this one's."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.folder, "failed.json"))

    def failed(self, error):
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        last = text.strip().rsplit("\n", 1)[-1]
        self.write("failed.json", error=last[-2000:], traceback=text[-TRACEBACK_LIMIT:])


def enter_release(path):
    """Make ``path`` (physical: no link is left in it) the place this process runs in, so that it stays one release."""
    os.chdir(path)
    sys.path[:] = [path] + [
        entry for entry in sys.path if entry not in ("", ".", path) and entry != os.path.dirname(__file__)
    ]


def load_application(name):
    """The WSGI callable that ``module:callable`` names."""
    module_name, _, attribute = name.partition(":")
    __import__(module_name)
    return getattr(sys.modules[module_name], attribute or "application")


def self_test(application, path, host):
    """Send one GET to the health path inside this process; returns the status, raises when it is 5xx or raises."""
    seen = []
    path, _, query = path.partition("?")

    def start_response(status, _headers, exc_info=None):
        if exc_info:
            raise exc_info[1].with_traceback(exc_info[2])
        seen.append(status)
        return lambda _data: None

    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REQUEST_URI": path,
        "SERVER_NAME": host,
        "SERVER_PORT": "80",
        "HTTP_HOST": host,
        "HTTP_USER_AGENT": "lightship-self-test",
        "REMOTE_ADDR": "127.0.0.1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    response = application(environ, start_response)
    body = b""
    try:
        for chunk in response:
            if len(body) < 2000:
                body += chunk[:2000]
    finally:
        if hasattr(response, "close"):
            response.close()
    status = int(seen[-1].split(" ", 1)[0]) if seen else 500
    if status >= 500:
        text = body.decode("utf-8", "replace").strip().split("\n", 1)[0][:200]
        raise SelfTestError("the health path %s answered %d inside the process: %s" % (path, status, text))
    return status


def close_connections():
    """Let go of what must not be shared by forked workers: Django's database connections, if there are any."""
    database = sys.modules.get("django.db")
    if database is not None:
        try:
            database.connections.close_all()
        except Exception:
            traceback.print_exc()


class Counter:
    """Counts this worker's responses and its server errors, and writes them down now and then for the soak to read."""

    def __init__(self, announcer):
        self.announcer = announcer
        self.worker = 0
        self.responses = 0
        self.errors = 0
        self.written = 0.0

    def count(self, status):
        self.responses += 1
        self.errors += status.startswith("5")
        now = time.monotonic()
        if self.worker and now - self.written > COUNT_INTERVAL:
            self.written = now
            name = "count-%d.json" % self.worker
            self.announcer.write(name, worker=self.worker, responses=self.responses, errors=self.errors)


def named(application, release, counter):
    """The application with the header ``X-Release`` added to every response, and its responses counted.

    An exception that leaves the application is counted too: uWSGI answers it with a 500.
    """

    def with_release(environ, start_response):
        def start(status, headers, exc_info=None):
            counter.count(status)
            return start_response(status, [*headers, ("X-Release", release)], exc_info)

        try:
            return application(environ, start)
        except Exception:
            counter.count("500")
            raise

    return with_release


def boot(release, announcer, settings, workers):
    """Import the release and test it; returns the application and announces how that went."""
    started = time.monotonic()
    announcer.forget_failure()
    try:
        enter_release(os.path.join(CODE, "releases", release))
        application = load_application(settings["app"])
        imported = time.monotonic() - started
        health = settings.get("health")
        status = self_test(application, health["path"], health.get("host") or "localhost") if health else None
        close_connections()
    except BaseException as error:
        announcer.failed(error)
        raise
    announcer.write(
        "booted.json",
        import_seconds=round(imported, 4),
        test_seconds=round(time.monotonic() - started - imported, 4),
        health_status=status,
        workers=workers,
    )
    counter = Counter(announcer)
    return named(application, release, counter), counter


class Gate:
    """Lets a slot's workers serve while ``current`` names their release, and holds them otherwise.

    A worker looks at it when it starts, and whenever uWSGI's file monitor in the master saw ``current`` change. That
    signal is delivered by uWSGI's own event loop, between two requests, and not by a Unix signal, which can hit a
    worker between ``accept()`` and the start of the request and then cuts that connection off.
    """

    def __init__(self, uwsgi, announcer, patience):
        self.patience = patience
        self.uwsgi = uwsgi
        self.announcer = announcer
        self.parked = 0
        self.closed_seen = (0.0, 0.0)
        threads = uwsgi.opt.get("threads", 1)
        self.threads = max(1, int(threads)) if str(getattr(threads, "decode", lambda: threads)()).isdigit() else 1

    def is_open(self):
        return self.announcer.release in (current_release(), opened_release()) and not self.is_closed()

    def is_closed(self):
        """Whether this whole instance is to take no more requests, because another container takes its place.

        Nobody stays shut out for ever: who closed it may have died with the machine before the other one was started.
        The clock may be stepped meanwhile, so what this process has seen for itself counts too.
        """
        try:
            moment = os.stat(CLOSED).st_mtime
        except OSError:
            return False
        if self.closed_seen[0] != moment:
            self.closed_seen = (moment, time.monotonic())
        limit = self.patience + CLOSED_SECONDS
        return abs(time.time() - moment) < limit and time.monotonic() - self.closed_seen[1] < limit

    def at_start(self):
        """Called in each worker after the fork, before it accepts anything."""
        number = self.uwsgi.worker_id()
        if not self.is_open():
            self.announcer.worker(number, "ready")
            while not self.is_open():
                time.sleep(GATE_INTERVAL)
        self.announcer.worker(number, "serving")

    def on_change(self, _signal=None):
        """Called in a worker between two requests when ``current`` changed.

        When it is no link any more, which is somebody's accident, whoever serves goes on.
        """
        if self.is_open() or not current_release():
            return
        number = self.uwsgi.worker_id()
        self.parked += 1
        if self.parked < self.threads:
            # One thread took this signal; the others are reached by sending it once more.
            self.uwsgi.signal(GATE_SIGNAL)
        else:
            self.announcer.worker(number, "parked")
        while not self.is_open():
            time.sleep(PARKED_INTERVAL)
        self.parked -= 1
        self.announcer.worker(number, "serving")


def under_uwsgi():
    """Boot what this slot is to run, register the announcements and the gate, and return the application."""
    import uwsgi  # noqa: PLC0415 - exists only inside uWSGI

    settings = instance_settings()
    if SLOT == "main":
        # A check container is to boot a release that is not current yet.
        release = os.environ.get("LIGHTSHIP_RELEASE") or os.path.basename(os.path.realpath(CURRENT))
        generation = 0
    else:
        wanted = settings["slots"][SLOT]
        release, generation = wanted["release"], wanted["generation"]
    announcer = Announcer(SLOT, release, generation)
    loaded, counter = boot(release, announcer, settings, uwsgi.numproc)
    gate = None if SLOT == "main" else Gate(uwsgi, announcer, float(settings.get("patience", 30.0)))

    def in_worker():
        counter.worker = uwsgi.worker_id()
        if gate:
            gate.at_start()
        else:
            announcer.worker(counter.worker, "serving")

    uwsgi.post_fork_hook = in_worker
    if gate is None:
        if uwsgi.worker_id():  # lazy-apps: this is the worker already
            in_worker()
        return loaded
    uwsgi.register_signal(GATE_SIGNAL, "workers", gate.on_change)
    uwsgi.add_file_monitor(GATE_SIGNAL, CODE)
    return loaded


def as_candidate(release):
    """``touch`` and ``chain``: import and test a release in a process of its own; exit status 1 when it fails."""
    announcer = Announcer("candidate", release, 0)
    os.makedirs(announcer.folder, exist_ok=True)
    boot(release, announcer, instance_settings(), 0)


if __name__ == "__main__":
    as_candidate(sys.argv[2])
else:
    application = under_uwsgi()
