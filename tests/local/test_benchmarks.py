"""The benchmarks can miss: a promise that is not kept, not measured or not comparable is never reported as kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import (
    code_deploy,
    comparison,
    fleet_simulated,
    limits,
    many_agents,
    pictures,
    scale,
    ssh_deploy,
    startup,
    tree,
)
from benchmarks.common import RESULTS, BenchmarkError, Options, Promise, Report, load_reports, median, ratios, summary
from benchmarks.comparison import ways
from benchmarks.page import MARK, PAGE, README, TEXT, page, readme
from benchmarks.plot import PICTURE, picture
from support.load import LoadReport, Record

KEPT = Promise("a | b", 0.5, 0.6, "times", 9)


def promise(value: float, **changes: object) -> Promise:
    return replace(KEPT, value=value, **changes)  # type: ignore[arg-type]


def report(*promises: Promise) -> Report:
    figures = [{"way": "lightship", "all new": 0.5}, {"way": "by hand", "all new": math.nan}]
    return Report("startup", "Start", promises, figures, [{"pair": 0, "seconds": 0.5}], {"cores": 2})


# --- figures --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "relation", "limit", "kept"),
    [
        (0.6, "at most", 0.6, True),
        (0.61, "at most", 0.6, False),
        (math.nan, "at most", 0.6, False),
        (math.inf, "at most", math.inf, False),
        (0, "exactly", 0, True),
        (1, "exactly", 0, False),
        (-1, "exactly", 0, False),
    ],
)
def test_a_promise_is_kept_within_its_limit_and_missed_when_it_was_not_measured(
    value: float, relation: str, limit: float, kept: bool
) -> None:
    assert promise(value, relation=relation, limit=limit).kept is kept


def test_a_report_without_a_promise_or_with_one_missed_is_not_kept() -> None:
    assert report(KEPT).kept
    assert not report().kept
    assert not report(KEPT, promise(0.7)).kept


def test_each_pair_gives_one_ratio_and_the_median_of_those_counts() -> None:
    found = ratios([1.0, 2.0, 30.0], [2.0, 2.0, 10.0])
    assert found == [0.5, 1.0, 3.0]
    assert median(found) == 1.0
    assert math.isnan(median([]))


@pytest.mark.parametrize("other", [0.0, -1.0, math.nan, math.inf])
def test_a_pair_that_gives_no_ratio_is_an_error_and_not_left_out(other: float) -> None:
    with pytest.raises(BenchmarkError):
        ratios([1.0, 1.0], [1.0, other])
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 1.0], [1.0])


def test_quick_measures_fewer_pairs_and_nothing_else_does() -> None:
    assert Options(quick=True).pairs(9, 3) == 3
    assert Options(full=True).pairs(9, 3) == 9
    assert min(code_deploy.PAIRS, tree.PAIRS) >= 7
    assert startup.RUNS >= 15


# --- results --------------------------------------------------------------------


def test_results_are_kept_as_json_and_read_back_the_same(tmp_path: Path) -> None:
    kept = report(KEPT)
    kept.save(tmp_path)
    (found,) = load_reports(tmp_path, ["code_deploy", "startup"])
    assert found.as_json() == kept.as_json()
    assert found.promises == (KEPT,)


def test_the_table_says_what_was_promised_measured_and_missed() -> None:
    text = summary(
        [report(KEPT, promise(0.7), promise(math.nan, unit="s"), Promise("f", 0, 0, "requests", 9, "exactly"))]
    )
    rows = [line.split() for line in text.splitlines()[1:5]]
    assert rows[0][-8:] == ["at", "most", "0.60", "times", "0.50", "times", "9", "ok"]
    assert rows[1][-4:] == ["0.70", "times", "9", "missed"]
    assert rows[2][-4:] == ["not", "measured", "9", "missed"]
    assert rows[3][-4:] == ["none", "none", "9", "ok"]
    assert "by hand    -" in text


@pytest.mark.parametrize(("value", "status"), [(0.5, 0), (0.7, 1), (math.nan, 1)])
def test_the_exit_status_says_whether_every_promise_is_kept(
    value: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "measure", lambda *_: [report(KEPT), report(promise(value))])
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    assert program.main(["--quick"]) == status
    assert ("missed" in capsys.readouterr().out) is bool(status)


def test_nothing_measured_is_no_success(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: object) -> list[Report]:
        raise BenchmarkError("no engine")

    monkeypatch.setattr(program, "measure", fails)
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    assert program.main(["--quick"]) == 1
    assert "no engine" in capsys.readouterr().err


# --- the page -------------------------------------------------------------------


def test_the_page_is_made_from_the_kept_results() -> None:
    assert PAGE.read_text() == page(load_reports(RESULTS, program.BENCHMARKS)), (
        "docs/reference/benchmarks.md is not as `python -m benchmarks --page` makes it"
    )


def test_results_that_were_kept_are_of_whole_runs_and_keep_every_promise() -> None:
    for kept in load_reports(RESULTS, program.BENCHMARKS):
        assert not kept.quick
        assert kept.kept, kept.name


def test_a_page_shows_each_promise_and_figure() -> None:
    text = page([report(KEPT, promise(0.7))])
    assert MARK in TEXT.read_text()
    assert MARK not in text
    assert "| a \\| b | at most 0.60 times | 0.70 times | 9 | missed |" in text
    assert "| lightship | 0.500 |" in text


# --- the benchmarks' own arithmetic ---------------------------------------------


def test_startup_is_the_difference_of_the_medians() -> None:
    times = {
        "python -c pass": [0.02, 0.02, 0.9],
        "lightship --help": [0.1, 0.2, 0.3],
        "lightship config check": [0.4] * 3,
    }
    samples = [{"way": way, "seconds": one} for way, found in times.items() for one in found]
    helped, checked = startup.report_of(samples, quick=False).promises
    assert (round(helped.value, 3), helped.kept, helped.pairs) == (0.18, True, 3)
    assert (round(checked.value, 3), checked.kept) == (0.38, False)


def test_a_command_that_fails_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="ended with"):
        startup.timed(startup.COMMANDS["lightship config check"], tmp_path)


def simulated(**changes: object) -> dict[str, object]:
    found = {"servers": 10_000, "rollout": 500.0, "cpu": 40.0, "memory": 600.0, "new": 9900, "old": 100, "wrong": 0}
    return found | changes


@pytest.mark.parametrize("missed", [{"cpu": 60.1}, {"memory": 1025.0}, {"wrong": 1}])
def test_a_simulated_fleet_is_held_to_time_memory_and_the_truth(missed: dict[str, object]) -> None:
    small = simulated(servers=1, rollout=3.0, cpu=0.01, memory=30.0)
    assert fleet_simulated.report_of([small, simulated()], quick=False).kept
    assert not fleet_simulated.report_of([small, simulated(**missed)], quick=False).kept


def test_a_simulated_rollout_is_the_same_each_time_and_ends_in_the_truth() -> None:
    first, again = fleet_simulated.roll_out(60, 7), fleet_simulated.roll_out(60, 7)
    assert first["wrong"] == 0
    assert first["new"] + first["old"] == 60
    assert (first["rollout"], first["new"]) == (again["rollout"], again["new"])


def test_the_picture_is_made_from_the_kept_results() -> None:
    (kept,) = load_reports(RESULTS, ["fleet_simulated"])
    assert PICTURE.read_text() == picture(kept)
    assert max(int(one["servers"]) for one in kept.samples) == 10_000


def test_a_tree_that_differs_from_a_fresh_checkout_is_missed_however_quick() -> None:
    samples = [{"way": f"{count} files", "seconds": 0.02} for count in (tree.SMALL, tree.LARGE)]
    assert tree.report_of(samples, wrong=0, quick=False).kept
    assert not tree.report_of(samples, wrong=1, quick=False).kept


def test_a_tree_is_compared_file_by_file_with_its_mode_and_bytes(tmp_path: Path) -> None:
    place = tree.Place.make(tmp_path, 20)
    place.step()
    assert place.differences() == 0
    place.step()
    release = place.paths.release(place.commits[0])
    changed, odd, *_ = sorted(release.rglob("*.py"))
    changed.write_bytes(changed.read_bytes().replace(b"1", b"3", 1))
    odd.chmod(0o755)
    (release / "left.over").touch()
    assert place.differences() == 3


def request(n: int, version: str, wait: float = 0.01, error: str | None = None) -> Record:
    due = n / 10
    return Record(n, "/", due, due, due + wait, due, None if error else 200, error, None, version)


def seen(*changes: Record) -> LoadReport:
    """Ten requests a second for 8 s, the new version from the 31st on, but for these."""
    records = {n: request(n, "old" if n < 31 else "new") for n in range(80)} | {one.n: one for one in changes}
    return LoadReport(tuple(records.values()))


def test_a_deploy_is_measured_from_its_start_until_every_response_is_new() -> None:
    # A stall before the deploy, and one right after it, are neither of the deploy nor of the quiet stretch.
    stalls = request(5, "old", 0.5), request(30, "old", 0.95), request(45, "new", 0.7), request(60, "new", 0.04)
    found = code_deploy.figures_of(seen(*stalls), "new", began=2.95, ended=3.5)
    assert found["all_new"] == pytest.approx(4.01 - 2.95, abs=0.001)
    assert (found["command"], found["worst"], found["quiet_worst"]) == (0.55, 0.95, 0.04)
    assert found["failed"] == 0


def test_failed_requests_count_from_before_the_deploy_until_the_end() -> None:
    lost = request(2, "", error="reset"), request(31, "", error="refused")
    assert code_deploy.figures_of(seen(*lost), "new", began=3.0, ended=3.2)["failed"] == 2


def test_a_deploy_that_never_got_through_or_has_no_quiet_stretch_is_no_measurement() -> None:
    with pytest.raises(BenchmarkError, match="never all that answered"):
        code_deploy.figures_of(seen(), "newer", 3.0, 3.2)
    with pytest.raises(BenchmarkError, match="before a quiet stretch"):
        code_deploy.figures_of(seen(), "new", 1.0, 5.0)
    with pytest.raises(BenchmarkError, match="before a quiet stretch"):
        # A failure at the very end: only after it all was new.
        code_deploy.figures_of(seen(request(78, "", error="reset")), "new", 3.0, 3.2)


def deploys(all_new: float, failed: int, worst: float) -> Report:
    samples = [
        {"import": 0.1, "way": way, "command": 1, "all_new": seconds, "failed": lost, "worst": longest, "p99": 0.01}
        | {"quiet_worst": 0.01}
        for way, seconds, lost, longest in (("lightship", all_new, failed, worst), ("by hand", 2.0, 5, 1.5))
    ]
    return code_deploy.report_of(samples, quick=False)


def test_a_code_deploy_is_held_to_three_promises() -> None:
    assert deploys(1.2, 0, 0.03).kept
    assert [one.kept for one in deploys(1.3, 0, 0.03).promises] == [False, True, True]
    assert [one.kept for one in deploys(1.2, 1, 0.03).promises] == [True, False, True]
    assert [one.kept for one in deploys(1.2, 0, 0.031).promises] == [True, True, False]


# --- a deploy over SSH ----------------------------------------------------------


def over_ssh(seconds: float, failed: int = 0, kept: float = 0.05) -> list[dict[str, object]]:
    """Three pairs in which SSH takes so much longer; one of them is disturbed."""
    common = {"command": 1.0, "worst": 0.01}
    return [
        {"pair": pair, "way": way, "all_new": 0.8 + more + (0.5 if pair == 1 else 0), "failed": lost, **common}
        for pair in range(3)
        for way, more, lost in (
            (ssh_deploy.LOCAL, 0.0, 0),
            (ssh_deploy.SSH, seconds, failed),
            (ssh_deploy.KEPT, kept, 0),
        )
    ]


def test_what_ssh_adds_is_the_median_of_the_differences_and_no_request_may_fail() -> None:
    found = ssh_deploy.report_of(over_ssh(0.25), quick=False)
    assert found.kept
    assert found.promises[0].value == pytest.approx(0.25)
    assert not ssh_deploy.report_of(over_ssh(0.35), quick=False).kept
    assert not ssh_deploy.report_of(over_ssh(0.1, failed=1), quick=False).kept
    assert not ssh_deploy.report_of(over_ssh(0.25, kept=0.15), quick=False).kept


def at_once(ours: float, plain: float, ansible: float, *, cpu: float = 0.1, **more: int) -> list[dict[str, object]]:
    ways = (
        (many_agents.OURS, ours, 0.2),
        (many_agents.KEPT, ours, cpu),
        (many_agents.PLAIN, plain, 0.1),
        (many_agents.ANSIBLE, ansible, 1.0),
    )
    used = {"memory": 60 * 2**20, "agent_memory": 20 * 2**20, **more}
    return [
        {"pair": pair, "way": way, "seconds": seconds, "cpu": spent, **used}
        for pair in range(3)
        for way, seconds, spent in ways
    ]


def test_twenty_agents_are_held_against_both_others() -> None:
    assert many_agents.report_of(at_once(1.9, 1.0, 6.0), quick=False).kept
    assert not many_agents.report_of(at_once(2.1, 1.0, 7.0), quick=False).kept
    assert not many_agents.report_of(at_once(1.9, 1.0, 5.0), quick=False).kept
    assert not many_agents.report_of(at_once(1.9, 1.0, 6.0, cpu=0.14), quick=False).kept
    assert not many_agents.report_of(at_once(1.9, 1.0, 6.0, memory=151 * 2**20), quick=False).kept
    assert not many_agents.report_of(at_once(1.9, 1.0, 6.0, agent_memory=41 * 2**20), quick=False).kept


def compared(way: str, seconds: float, **changes: object) -> dict[str, object]:
    names = ("command", "first_new", "all_new", "worst", "p99", "quiet_p99", "cpu_command", "cpu_server")
    counts = ("failed", "stalled", "bytes", "memory_command", "memory_service")
    found = {**dict.fromkeys(names, seconds), **dict.fromkeys(counts, 0), "kind": "deploy", "round": 1, "way": way}
    return found | changes


def refusal(way: str, **changes: object) -> dict[str, object]:
    return {"kind": "broken", "way": way, "status": 3, "failed": 0, "broken": "exit 3, old version serves"} | changes


@pytest.mark.parametrize(
    "missed",
    [
        {"all_new": 0.9},
        {"failed": 1},
        {"stalled": 1},
        {"p99": 0.7},
        {"broken": {"status": 0}},
        {"broken": {"failed": 2}},
    ],
)
def test_the_comparison_holds_lightship_to_each_of_its_promises(missed: dict[str, object]) -> None:
    def found(**changes: object) -> Report:
        broken = changes.pop("broken", {})
        mine = compared("lightship", 0.4, **changes)
        return comparison.report_of(
            [mine, compared("by hand, warm SSH", 1.0), refusal("lightship", **broken), refusal("by hand, warm SSH")],
            False,
        )

    assert found().kept
    assert not found(**missed).kept


def test_the_timeline_says_which_version_answered_each_request() -> None:
    records = tuple(
        Record(number, "/", due=float(number), start=number, end=number + 0.2, wall=0, status=status, mark=mark)
        for number, (status, mark) in enumerate([(200, "a"), (200, "a"), (500, "a"), (200, "b"), (200, "b")])
    )
    line = comparison.timeline(LoadReport(records), "b", 1.0, 4.0)
    assert [which for _, _, which in line] == [0, -1, 1, 1]
    assert line[0][:2] == [0.0, 0.2]


def test_the_phases_of_a_deploy_begin_with_its_process_and_follow_each_other() -> None:
    def span(name: str, start: float, end: float) -> dict[str, object]:
        return {"name": name, "start": start, "end": end, "children": []}

    told = [span("python", 0.0, 0.1), span("modules", 0.1, 0.2), span("prepare", 0.4, 0.6), span("connect", 0.2, 0.4)]
    trace = {"began": 1000.0, "root": {"children": told}}
    assert ways.phases_of(trace, 1000.0) == [("start", 0.0, 0.2), ("connect", 0.2, 0.4), ("prepare", 0.4, 0.6)]
    assert ways.phases_of({**trace, "root": {"children": told[2:3]}}, 1000.0) == [("prepare", 0.4, 0.6)]


def test_the_phases_of_a_deploy_are_told_by_the_clock_of_the_requests() -> None:
    told = [{"name": name, "start": start, "end": start + 0.1} for name, start in (("python", 0.0), ("prepare", 0.4))]
    trace = {"began": 999.992, "root": {"children": told}}
    assert ways.phases_of(trace, 1000.0) == [("start", 0.0, 0.092), ("prepare", 0.392, 0.492)]
    with pytest.raises(BenchmarkError, match="newest trace"):
        ways.phases_of(trace, 1020.0)


def test_a_deploy_is_drawn_with_its_phases_where_a_result_tells_them() -> None:
    sample = compared("lightship", 1.0, timeline=[[0.0, 0.01, 0], [0.5, 0.01, 1]])
    report = comparison.report_of([sample, compared("by hand, warm SSH", 1.0), refusal("lightship")], quick=False)
    assert pictures.phases(report) is None
    told = replace(report, samples=[{**sample, "phases": [["prepare", 0.2, 0.4]]}])
    drawn = pictures.phases(told)
    assert drawn is not None
    assert "prepare 0.20" in drawn


def test_the_ansible_recipe_that_is_measured_is_the_one_of_the_examples() -> None:
    tuned, usual = ways.recipe(tuned=True), ways.recipe(tuned=False)
    assert tuned == ways.RECIPE.read_text()
    assert [line for line in tuned.splitlines() if line not in usual.splitlines()] == ["  gather_facts: false"]


def test_the_limits_take_the_import_off_where_there_is_one() -> None:
    samples = [
        {"import": seconds, "round": 1, "case": case, "way": way, "seconds": 0.3 + off, "failed": 0}
        for seconds in (0.1, 2.0)
        for case, off in ((limits.DEPLOY, seconds), (limits.REFUSAL, seconds), (limits.ROLLBACK, seconds),
                          (limits.WARM, 0.0), (limits.NOTHING, 0.0))
        for way in limits.WAYS
    ]  # fmt: skip
    kept = limits.report_of(samples, quick=False)
    assert kept.kept
    assert {one.value for one in kept.promises if one.unit == "s"} == {0.3}
    assert not limits.report_of([*samples[:-1], {**samples[-1], "failed": 1}], quick=False).kept


def test_sizes_are_held_flat_by_the_ratio_of_each_pair() -> None:
    def found(seconds: float) -> Report:
        samples = [
            {"of": size.name, "way": way, "seconds": taken}
            for size in scale.LARGE
            for way, taken in ((scale.BASE.name, 1.0), (size.name, seconds))
        ]
        return scale.report_of(samples, quick=False)

    assert found(1.3).kept
    assert not found(1.31).kept


def test_the_readme_and_the_pictures_are_made_from_the_kept_results() -> None:
    kept = load_reports(RESULTS, ["comparison"])
    assert kept, "the comparison has been measured"
    text = README.read_text()
    assert text == readme(text, kept)
    assert "| lightship |" in text
    assert pictures.TIMELINE.read_text() == pictures.timeline(kept[0])
    assert pictures.BARS.read_text() == pictures.bars(kept[0])
    phases = pictures.PHASES.read_text() if pictures.PHASES.is_file() else None
    assert phases == pictures.phases(kept[0])
    (sized,) = load_reports(RESULTS, ["scale"])
    assert pictures.SIZES.read_text() == pictures.sizes(sized)
