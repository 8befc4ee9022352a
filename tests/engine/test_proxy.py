"""What a user is promised of `proxy`: no gap between containers, names, TLS, maintenance, and that it lasts."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lightship_agent.proxy import FIRST_PORT, LAST_PORT
from support.engine import Engine
from support.load import Load
from support.proxy import behind, certificate, curl, proxied, proxy_of, remove
from support.site import Site

pytestmark = pytest.mark.timeout(600)

SICK_APPLICATION = """
def application(environ, start_response):
    inside = environ.get("HTTP_USER_AGENT") == "lightship-self-test"
    start_response("200 OK" if inside else "500 Internal Server Error", [("Content-Type", "text/plain")])
    return [b"sick"]
"""


def until(true: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def site(engine: Engine, proxy_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = behind(Site(engine, tmp_path_factory.mktemp("proxy") / "site"), proxy_image)
    try:
        made.deploy()
        yield made
    finally:
        remove(made)


@contextmanager
def visited(site: Site, rate: float = 50) -> Iterator[list[Load]]:
    """Visitors on new connections, on kept ones, and such that wait 3 s for their answer. None of them may fail."""
    ways = [
        site.load(rate=rate, seconds=900),
        site.load(rate=rate, seconds=900, keep_alive=True),
        site.load(rate=0.8, seconds=900, paths=["/slow?seconds=3"]),
    ]
    with ExitStack() as stack:
        loads = [stack.enter_context(load) for load in ways]
        assert loads[0].wait_count(int(rate))
        yield loads
        went_on = loads[1].wait_count(int(rate))
        assert went_on, "a load was ended too soon"
    for load in loads:
        assert load.report.count, "nothing was asked"
        assert not load.report.failed, load.report.errors


def test_containers_take_each_others_place_and_no_visitor_notices(site: Site) -> None:
    with visited(site) as loads:
        commits = []
        for number in range(4):
            site.configure(env={"NUMBER": str(number)})
            kind = "container"
            if number % 2:
                site.change(f"full-{number}")
                kind = "full"
            said = site.deploy()
            assert said.result["kind"] == kind
            commits.append(site.current)
            assert len(site.containers()) == 1
    load, kept, slow = (one.report for one in loads)
    assert load.releases[-1] == kept.releases[-1] == commits[-1]
    assert load.worst < 2, load.as_dict()
    assert slow.worst < 5, "a request in flight was finished by the container that had it"
    assert not list((site.home / "code").glob("opened-*")), "the gate obeys current alone again"
    print(f"worst {load.worst:.3f} s, kept {kept.worst:.3f} s, p99 {load.p99:.3f} s of {load.count}")


def test_a_container_that_is_not_well_gets_no_visitor(site: Site) -> None:
    before, containers = site.current, site.containers()
    with visited(site) as loads:
        # It boots and answers inside its process, and then not over HTTP.
        site.repository.write({"service/wsgi.py": SICK_APPLICATION})
        site.configure(env={"NUMBER": "sick"})
        sick = site.repository.commit("Sick")
        said = site.deploy(expect=4)
        assert said.error["code"] == "unhealthy"
        assert site.current == before
        assert site.containers() == containers
    assert sick not in loads[0].report.releases
    site.repository.write(site.code("well"))
    site.repository.commit("Well")
    site.deploy()


def test_no_role_ever_runs_in_two_containers_though_both_serve(site: Site) -> None:
    words = f"import time; time.sleep(1e6)  # {site.name}"
    site.configure(roles={"worker": {"command": ["python3", "-c", words], "settle": 0.5}})
    site.deploy()
    with Processes(words) as seen, visited(site) as _:
        site.configure(env={"NUMBER": "role"})
        site.change("with-a-role")
        assert site.deploy().result["kind"] == "full"
        live = site.current
        # One that fails once it is live: the role goes back to the old container, which never stopped serving.
        site.repository.write({"service/wsgi.py": SICK_APPLICATION})
        site.configure(env={"NUMBER": "sick role"})
        site.repository.commit("Sick")
        site.deploy(expect=4)
    assert set(seen.counts) == {0, 1}
    [process] = site.run("status", "--json", expect=0).result["servers"][0]["facts"]["roles"]["worker"]["processes"]
    assert (process["release"], process["state"]) == (live, "RUNNING")
    site.repository.write(site.code("well again"))
    site.repository.commit("Well")
    site.configure(roles={})
    site.deploy()


class Processes:
    """How many processes with these words there were at each moment of the block, in whichever container."""

    def __init__(self, words: str) -> None:
        self.words = words.encode()
        self.counts: list[int] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        while not self._end.wait(0.02):
            self.counts.append(sum(map(self._is_one, Path("/proc").iterdir())))

    def _is_one(self, entry: Path) -> bool:
        try:
            return entry.name.isdigit() and self.words in (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            return False

    def __enter__(self) -> Processes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def test_whatever_is_killed_or_started_again_the_proxy_leads_to_the_container_that_serves(site: Site) -> None:
    site.configure(env={"NUMBER": "again"})
    site.deploy()
    kill_proxy(site)
    until(lambda: _answers(site))
    assert site.get()[2] == site.current
    # The port is the same after it, so nobody has to tell the proxy anything.
    site.engine.docker("restart", site.container())
    until(lambda: _answers(site))
    facts = site.run("status", "--json", expect=0).result["servers"][0]["facts"]["proxy"]
    assert facts["running"]
    assert facts["current"]
    assert facts["leads"]
    port = int(site.engine.docker("port", site.container()).rpartition(":")[2])
    assert FIRST_PORT <= port <= LAST_PORT
    mounts = site.engine.docker("inspect", "--format", "{{json .Mounts}}", site.container())
    assert ".proxy" not in mounts, "the service does not reach the proxy's socket"


def kill_proxy(site: Site) -> None:
    """Kill the proxy, and see the engine start it again."""
    shown = ("inspect", "--format", "{{.State.Pid}}", proxy_of(site))
    pid = site.engine.docker(*shown)
    os.kill(int(pid), signal.SIGKILL)
    until(lambda: site.engine.docker(*shown) not in (pid, "0"))


def _answers(site: Site) -> bool:
    try:
        with urllib.request.urlopen(site.url, timeout=5) as answer:
            return int(answer.status) == 200
    except OSError:
        return False


def test_under_maintenance_visitors_get_the_page_and_deploys_go_on_behind_it(site: Site, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<h1>Gleich zurück</h1>", encoding="utf-8")
    said = site.run("maintenance", "on", "--page", str(page), "--json", expect=0)
    assert said.result["servers"][0]["changed"]
    assert site.get()[:2] == (503, "<h1>Gleich zurück</h1>")
    site.change("behind")
    site.configure(env={"NUMBER": "behind"})
    site.deploy()
    assert site.get()[0] == 503
    kill_proxy(site)
    until(lambda: _status(site) == 503)
    assert "maintenance" in site.run("status", expect=0).stdout
    assert site.run("maintenance", "on", "--message", "Back at <ten>", expect=0).status == 0
    status, body, _ = site.get()
    assert status == 503
    assert "Back at &lt;ten&gt;" in body
    try:
        urllib.request.urlopen(site.url, timeout=5)
    except urllib.error.HTTPError as error:
        assert int(error.headers["Retry-After"]) > 0
    site.run("maintenance", "off", expect=0)
    assert site.get()[:2] == (200, "behind")


def _status(site: Site) -> int:
    try:
        return site.get()[0]
    except OSError:
        return 0


def test_an_image_with_one_uwsgi_is_replaced_without_a_gap_too(
    engine: Engine, proxy_image: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    site = behind(Site(engine, tmp_path_factory.mktemp("touch") / "site", variant="touch"), proxy_image)
    try:
        site.deploy()
        with visited(site, 20) as loads:
            site.configure(env={"NUMBER": "1"})
            site.change("v2")
            assert site.deploy().result["kind"] == "full"
        assert loads[0].report.releases[-1] == site.current
        assert site.get()[1] == "v2"
    finally:
        remove(site)


def test_two_services_share_a_proxy_by_their_names_with_tls_and_http2(
    engine: Engine, proxy_image: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("names")
    shop, blog = Site(engine, folder / "shop"), Site(engine, folder / "blog")
    try:
        blog.root, blog.port, secure = shop.root, shop.port, engine.free_port()
        tls = certificate(folder / "tls", "shop.example", days=5)
        behind(shop, proxy_image, hosts=["shop.example"], https=secure, certificates=[str(tls)])
        behind(blog, proxy_image, hosts=["blog.example"])
        shop.deploy()
        # The other's name is refused before anything is changed.
        blog.configure(**proxied(blog, proxy_image, hosts=["shop.example"]))
        refused = blog.deploy(expect=3)
        assert refused.error["code"] == "proxy-conflict"
        assert "shop.example" in refused.error["message"]
        blog.configure(**proxied(blog, proxy_image, hosts=["blog.example"]))
        blog.change("blog")
        blog.deploy()

        def asked(name: str, *more: str) -> str:
            return curl(proxy_image, "--resolve", f"{name}:{shop.port}:127.0.0.1", f"http://{name}:{shop.port}/", *more)

        assert asked("blog.example") == "blog"
        assert "no service of that name" in asked("other.example")
        assert f"location: https://shop.example:{secure}/" in asked("shop.example", "--include").lower()
        shown = curl(
            proxy_image, "--resolve", f"shop.example:{secure}:127.0.0.1", "--cacert", "/tls/ca.pem", "--http2",
            "--write-out", " %{http_version} %{http_code}", f"https://shop.example:{secure}/", folder=tls,
        )  # fmt: skip
        assert shown == "v1 2 200"
        doctor = shop.run("doctor", "--json").result["checks"]
        states = {one["name"]: one for one in doctor if one["name"] in ("proxy", "certificate")}
        assert states["proxy"]["state"] == "ok"
        assert (states["certificate"]["state"], "valid for 5 days" in states["certificate"]["message"]) == (
            "warning",
            True,
        )
        # A renewed certificate is taken up, and nobody is cut off.
        certificate(folder / "tls", "shop.example", days=60)
        with blog.load(rate=50, seconds=60, host="blog.example") as load:
            renewed = shop.run("proxy", "--json", expect=0).result["servers"][0]
            assert load.wait_count(25)
        assert renewed["changed"]
        assert not load.report.failed
        assert not shop.run("proxy", "--json", expect=0).result["servers"][0]["changed"]
        # Names are changed by a deploy that replaces nothing.
        container = blog.container()
        blog.configure(**proxied(blog, proxy_image, hosts=["www.blog.example"]))
        assert blog.deploy().result["kind"] == "code"
        assert blog.container() == container
        assert asked("www.blog.example") == "blog"
        assert "no service of that name" in asked("blog.example")
    finally:
        remove(blog)
        remove(shop)


def test_a_service_comes_to_the_proxy_and_leaves_it_again(
    engine: Engine, proxy_image: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    site = Site(engine, tmp_path_factory.mktemp("moves") / "site")
    try:
        site.deploy()
        ports = [f"127.0.0.1:{site.port}:8000"]
        refused = site.run("maintenance", "on", expect=3)
        assert "proxy: none" in refused.stderr
        site.configure(**proxied(site, proxy_image))
        plan = site.run("plan", expect=0).stdout
        assert "let the proxy take its ports" in plan
        assert "the site does not answer" in plan
        with site.load(rate=50, seconds=120) as load:
            site.deploy()
            assert load.wait_count(50)
        print(f"to the proxy: {load.report.gap():.2f} s, {len(load.report.failed)} failed")
        assert site.get()[2] == site.current
        site.configure(ports=ports, proxy="none")
        site.change("left")
        with site.load(rate=50, seconds=120) as load:
            site.deploy()
            assert load.wait_count(50)
        print(f"from the proxy: {load.report.gap():.2f} s, {len(load.report.failed)} failed")
        assert site.get()[1] == "left"
        shown = site.run("status", "--json", expect=0).result["servers"][0]["facts"]
        assert shown["proxy"] is None
        # What cannot be: a port that another program has.
        taken = engine.free_port()
        engine.run("--publish", f"127.0.0.1:{taken}:80", engine.base_image, "sleep", "600", name=engine.name("taken"))
        site.configure(ports=[], proxy={"http": taken, "image": proxy_image})
        before = json.dumps(site.containers())
        refused = site.deploy(expect=3)
        assert refused.error["code"] == "proxy-port"
        assert str(taken) in refused.error["message"]
        assert json.dumps(site.containers()) == before
        assert site.get()[1] == "left"
    finally:
        remove(site)
