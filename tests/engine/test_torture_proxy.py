"""Behind a proxy a deploy may be cut off anywhere too, and no visitor notices even that: not one request fails.

See ``support.torture``. What other deploys have in common with these is cut off in test_torture.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.agent_modules import all_fail_points
from support.engine import Engine
from support.proxy import remove
from support.torture import Draw, Torture

pytestmark = pytest.mark.timeout(900)

OURS = ("proxy.", "handover.", "instance.open")
#: Where others are cut off as well, and where it may hurt here.
DELICATE = ("instance.started", "instance.policy", "current.flip", "current.flipped", "commit.state", "commit.stable",
            "commit.released", "rollout.activated")  # fmt: skip
#: What happens in no undisturbed deploy: the proxy is started and reloaded once, and going back is an accident.
ELSEWHERE = frozenset({"proxy.start", "proxy.started", "proxy.reload", "proxy.reloaded", "handover.back"})


@pytest.fixture(scope="module")
def torture(engine: Engine, proxy_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Torture]:
    folder = tmp_path_factory.mktemp("torture-proxy") / "site"
    port, made = engine.free_port(), None
    settings = {"ports": [], "proxy": {"image": proxy_image, "http": port}}
    try:
        made = Torture.begin(engine, folder, gapless=True, settings=settings, port=port)
        made.record(("full",))
        with made.load():
            yield made
    finally:
        if made is not None:
            remove(made.site)


def test_a_kill_at_any_step_of_the_handover_is_noticed_by_no_visitor(torture: Torture) -> None:
    points = [point for point in torture.points["full"] if point.startswith(OURS) or point in DELICATE]
    assert {name for name in all_fail_points() if name.startswith(OURS)} - set(points) <= ELSEWHERE
    torture.carry_out([Draw("full", f"{point}=kill*1") for point in points])
    assert set(points) <= torture.killed


def test_killed_together_with_its_controller_the_agent_leaves_one_container_that_is_led_to(torture: Torture) -> None:
    points = ("handover.proven", "proxy.configured", "proxy.switched", "handover.led", "current.flipped")
    torture.carry_out([Draw("full", f"{point}=kill,ask.hello=kill@2") for point in points])


def test_a_step_that_fails_leads_back_to_the_old_container(torture: Torture) -> None:
    points = ("proxy.write", "proxy.switch", "proxy.switched", "handover.led", "rollout.activated")
    torture.carry_out([Draw("full", f"{point}=error*1") for point in points])
    torture.carry_out([Draw("full", "handover.led=error*1,handover.back=kill*1"), Draw("sick")])
