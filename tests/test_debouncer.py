"""From posteriors to detections, drawn: one character per hop, one line per label.

`.` is a posterior of 0, `1` … `9` are tenths, `X` is 1; `|` is a gap of one second before the next hop. What a line
leaves over goes to `_silence_`. Expected are the hops (gaps do
not count) at which keywords are heard.
"""

import ast
import dataclasses
import inspect
import itertools
import time

import numpy as np
import pytest
from c_parts import both_forms
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kwsd import compiled, compiled_debouncer, debouncer
from kwsd.compiled_debouncer import CompiledDebouncer, make_debouncer
from kwsd.debouncer import Debouncer, NearMisses, Rules

HOP = 1600  # samples: 100 ms
SECOND = 10  # hops
GAP = 16_000  # samples that `|` stands for
LABELS = ("_silence_", "_unknown_", "stop", "up")
KEYWORDS = ("stop", "up")
SILENCE, UNKNOWN = 0, 1


form = both_forms(globals(), "Debouncer", make_debouncer, compiled_debouncer.PART)


def rules(keywords=KEYWORDS, **changed):
    """Rules that leave everything through but scores under 0.75; one value for all keywords, or one for each."""
    plain = {
        "threshold": 0.75,
        "release": 0.35,
        "margin": 0.0,
        "min_hits": 1,
        "refractory": 0,
        "isolation_speech": -1,
        "isolation": 0,
        "wary": 0,
        "wary_threshold": 0.9,
        "smoothing": 1,
    }
    assert not changed.keys() - plain.keys()
    settings = plain | changed

    def per_keyword(name, kind):
        return np.broadcast_to(np.asarray(settings[name], kind), len(keywords)).copy()

    return Rules(
        keywords=tuple(keywords),
        threshold=per_keyword("threshold", np.float32),
        release=per_keyword("release", np.float32),
        margin=per_keyword("margin", np.float32),
        min_hits=per_keyword("min_hits", np.int64),
        refractory=per_keyword("refractory", np.int64),
        isolation_speech=per_keyword("isolation_speech", np.int64),
        isolation=settings["isolation"],
        wary=settings["wary"],
        wary_threshold=settings["wary_threshold"],
        smoothing=settings["smoothing"],
        hop=HOP,
    )


def posterior(character):
    return {".": 0.0, "X": 1.0}.get(character) if character in ".X" else int(character) / 10


def drawn(stop="", up="", unknown=""):
    """Posteriors (hops, labels) and the ends of their windows."""
    hops = max(len(line) for line in (stop, up, unknown))
    columns = [line.ljust(hops, ".") for line in (unknown, stop, up)]
    rows, ends, end = [], [], 16_000
    for characters in zip(*columns, strict=True):
        if "|" in characters:
            end += GAP
            continue
        row = np.zeros(len(LABELS), np.float32)
        row[[UNKNOWN, 2, 3]] = [posterior(character) for character in characters]
        row[SILENCE] += max(0.0, 1.0 - row.sum())
        rows.append(row)
        ends.append(end)
        end += HOP
    return np.array(rows), np.array(ends, np.int64)


def run(debouncer, rows, ends, stream=0):
    """[(hop, keyword)] of one stream, window by window."""
    return [
        (hop, detection.keyword)
        for hop, (row, end) in enumerate(zip(rows, ends, strict=True))
        for detection in debouncer.step(np.array([stream]), np.array([end]), row[None])
    ]


def heard(rules, **lines):
    """[(hop, keyword)] of a fresh debouncer."""
    return run(Debouncer(rules, LABELS, 1), *drawn(**lines))


# --- known mistakes of others ---


@pytest.mark.parametrize("min_hits", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("smoothing", [1, 3])
def test_known_mistake_a_patience_that_never_fires(min_hits, smoothing):
    patient = rules(min_hits=min_hits, smoothing=smoothing)
    word = "..." + "X" * (min_hits + smoothing - 1) + "..."
    assert heard(patient, stop=word) == [(3 + min_hits + smoothing - 2, "stop")]
    assert heard(patient, stop=word.replace("X", "", 1)) == []


@pytest.mark.parametrize("seconds", [2.4, 2.5, 3, 10, 60])
def test_known_mistake_a_debounce_that_forgets_after_2_4_s(seconds):
    held = "9" * round(seconds * SECOND)
    for refractory in (0, 8_000, 5 * 16_000):
        assert heard(rules(refractory=refractory), stop=".." + held + "..") == [(2, "stop")]


def test_known_mistake_a_debounce_that_forgets_after_2_4_s_in_a_long_refractory():
    twice = "9" + "." * (3 * SECOND - 1) + "9"  # three seconds apart
    assert heard(rules(refractory=5 * 16_000), stop=twice) == [(0, "stop")]
    assert heard(rules(refractory=2 * 16_000), stop=twice) == [(0, "stop"), (30, "stop")]


@pytest.mark.parametrize("stop", ["9.9.9.9.9.9.9.", "99.99.99.99.99", "99199299399", "9.99..9...99...."])
def test_known_mistake_a_trigger_level_that_counts_hits_ever_instead_of_hits_in_a_row(stop):
    assert heard(rules(min_hits=3), stop=stop) == []
    assert heard(rules(min_hits=3), stop=stop + ".999") == [(len(stop) + 3, "stop")]


@pytest.mark.parametrize("between", ["speech", "another word"])
def test_known_mistake_a_rule_that_will_not_fire_the_same_word_twice_unless_silence_won_in_between(between):
    other = {"unknown": "...XXX..."} if between == "speech" else {"up": "...999..."}
    found = heard(rules(), stop="999...999", **other)
    assert [hit for hit in found if hit[1] == "stop"] == [(0, "stop"), (6, "stop")]


def test_known_mistake_one_timer_shared_by_all_words():
    twice = heard(rules(refractory=2 * 16_000), stop="99....99......", up="..99....99....")
    assert twice == [(0, "stop"), (2, "up")]
    in_turns = heard(rules(refractory=SECOND * HOP), stop="9" + "." * 11 + "9", up="......9" + "." * 11 + "9")
    assert in_turns == [(0, "stop"), (6, "up"), (12, "stop"), (18, "up")]


def test_known_mistake_wall_clock_time_that_makes_a_replay_differ():
    strict = rules(refractory=4 * HOP, smoothing=2, min_hits=2)
    rows, ends = drawn(stop="..9999..9999....99..99", up="99....9999..99..9999..")
    at_once = [(d.keyword, d.end) for d in Debouncer(strict, LABELS, 1).step(np.zeros(len(ends), int), ends, rows)]
    assert len(at_once) > 2
    dawdling, slowly = Debouncer(strict, LABELS, 1), []
    for row, end in zip(rows, ends, strict=True):
        time.sleep(0.02)
        slowly += [(d.keyword, d.end) for d in dawdling.step(np.array([0]), np.array([end]), row[None])]
    assert slowly == at_once


def test_known_mistake_wall_clock_time_is_not_even_imported():
    tree = ast.parse(inspect.getsource(debouncer))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert not {name.partition(".")[0] for name in names} & {"time", "datetime", "asyncio", "threading", "logging"}


@pytest.mark.parametrize("origin", [0, 16_000, 10**12])
def test_known_mistake_wall_clock_time_where_only_differences_of_sample_indices_count(origin):
    rows, ends = drawn(stop="..99..99..|.99..9.9.9.9")
    debouncer = Debouncer(rules(refractory=5 * HOP), LABELS, 1)
    assert run(debouncer, rows, ends + origin) == [(2, "stop"), (11, "stop"), (17, "stop")]


# --- the same word again ---


def test_the_same_word_four_times_at_two_second_gaps_fires_four_times():
    word = "..1379999731" + "." * 8
    shipped = rules(smoothing=3, margin=0.1, refractory=8_000, isolation=40_000, isolation_speech=19_200)
    times = [hop for hop, keyword in heard(shipped, stop=word * 4) if keyword == "stop"]
    assert len(times) == 4
    assert np.diff(times).tolist() == [20, 20, 20]


# --- each rule ---

CASES = {
    # --- smooth ---
    "a single hop is scored as it is": (rules(), {"stop": "..8.."}, [(2, "stop")]),
    "a mean of two is of the last two": (rules(smoothing=2), {"stop": "..8.88."}, [(5, "stop")]),
    "a mean dilutes a short spike": (rules(smoothing=3), {"stop": "..X..XX..XXX"}, [(11, "stop")]),
    "a mean of three carries over a dip": (rules(smoothing=3), {"stop": "..99599.."}, [(4, "stop")]),
    "nothing is scored before there is a whole mean": (rules(smoothing=4), {"stop": "XXXXXX"}, [(3, "stop")]),
    # --- candidate ---
    "under the threshold is nothing": (rules(threshold=0.75), {"stop": "..777777.."}, []),
    "the threshold itself counts": (rules(threshold=0.5), {"stop": "..4545.."}, [(3, "stop")]),
    "every keyword has a threshold of its own": (
        rules(threshold=[0.55, 0.85]),
        {"stop": "..6......8..", "up": ".....8.9...."},
        [(2, "stop"), (7, "up"), (9, "stop")],
    ),
    "a lead smaller than the margin is not enough": (
        rules(threshold=0.45, margin=0.25),
        {"stop": "55566788", "up": "54444322"},
        [(5, "stop")],
    ),
    "the margin itself counts": (rules(margin=1.0), {"stop": ".9X."}, [(2, "stop")]),
    "the runner-up may be no keyword": (
        rules(threshold=0.45, margin=0.25),
        {"stop": "..55..", "unknown": "XX43XX"},
        [],
    ),
    "every keyword has a margin of its own": (
        rules(threshold=0.45, margin=[0.5, 0.0]),
        {"stop": ".6..4.", "up": ".4..6."},
        [(4, "up")],
    ),
    "of two keywords only the leading one fires": (
        rules(threshold=0.25, margin=0.05),
        {"stop": ".4..6.", "up": ".6..4."},
        [(1, "up"), (4, "stop")],
    ),
    "hits must be in a row": (rules(min_hits=3), {"stop": ".99.999."}, [(6, "stop")]),
    "every keyword has a number of hits of its own": (
        rules(min_hits=[1, 3]),
        {"stop": ".9..........", "up": "....99..999."},
        [(1, "stop"), (10, "up")],
    ),
    "a lost lead breaks the row": (
        rules(threshold=0.45, margin=0.15, min_hits=3),
        {"stop": "6656666", "up": "1151111"},
        [(5, "stop")],
    ),
    # --- fire once ---
    "a held word fires once": (rules(), {"stop": ".999999999999999999999."}, [(1, "stop")]),
    "firing disarms no other keyword": (
        rules(),
        {"stop": ".9999....", "up": ".....9999"},
        [(1, "stop"), (5, "up")],
    ),
    "two at once both fire": (rules(threshold=0.45), {"stop": ".5.", "up": ".5."}, [(1, "stop"), (1, "up")]),
    # --- re-arm ---
    "a dip that stays above the release level does not re-arm": (
        rules(release=0.35),
        {"stop": ".9949949949."},
        [(1, "stop")],
    ),
    "a dip under the release level re-arms": (
        rules(release=0.35),
        {"stop": ".993993999."},
        [(1, "stop"), (4, "stop"), (7, "stop")],
    ),
    "the release level itself does not re-arm": (rules(release=0.5), {"stop": ".959549."}, [(1, "stop"), (6, "stop")]),
    "every keyword has a release level of its own": (
        rules(release=[0.25, 0.55]),
        {"stop": ".949......", "up": ".....9499."},
        [(1, "stop"), (5, "up"), (7, "up")],
    ),
    "the smoothed score is what must fall": (
        rules(smoothing=3, release=0.35),
        {"stop": "999.999...999"},
        [(2, "stop"), (12, "stop")],
    ),
    "a dip within the refractory time does not re-arm": (
        rules(refractory=5 * HOP),
        {"stop": ".9.9.9999999.9"},
        [(1, "stop"), (13, "stop")],
    ),
    "the end of the refractory time re-arms what lies under the release level": (
        rules(refractory=5 * HOP),
        {"stop": ".9.....9"},
        [(1, "stop"), (7, "stop")],
    ),
    "a refractory time counts from the last firing, not from the last hit": (
        rules(refractory=4 * HOP),
        {"stop": ".9999.9"},
        [(1, "stop"), (6, "stop")],
    ),
    "every keyword has a refractory time of its own": (
        rules(refractory=[10 * HOP, 2 * HOP]),
        {"stop": "9..9..9...........9", "up": ".9..9..9..9........"},
        [(0, "stop"), (1, "up"), (4, "up"), (7, "up"), (10, "up"), (18, "stop")],
    ),
    # --- gaps ---
    "a mean never reaches over a gap": (rules(smoothing=3), {"stop": "..XX|X..."}, []),
    "after a gap there must be a whole mean again": (rules(smoothing=3), {"stop": "...|XXXX"}, [(5, "stop")]),
    "hits in a row end at a gap": (rules(min_hits=3), {"stop": ".99|9.99|999"}, [(9, "stop")]),
    "a held word is not told again after a gap": (rules(), {"stop": ".999|99999."}, [(1, "stop")]),
    "a held word is not told again after a gap while the mean fills": (
        rules(smoothing=3),
        {"stop": ".9999|99999."},
        [(3, "stop")],
    ),
    "a refractory time runs on over a gap": (
        rules(refractory=30 * HOP),
        {"stop": ".9...|..9...|.....9...|..9"},
        [(1, "stop"), (16, "stop")],
    ),
    "a word after a gap is told though the fall was not heard": (
        rules(smoothing=2),
        {"stop": ".999|....99."},
        [(2, "stop"), (9, "stop")],
    ),
}


@pytest.mark.parametrize(("rules", "lines", "expected"), CASES.values(), ids=CASES.keys())
def test_of(rules, lines, expected):
    assert heard(rules, **lines) == expected


# --- isolation ---

ALONE = {"isolation": 10 * HOP, "isolation_speech": 4 * HOP}

ISOLATION = {
    "a word on its own is heard": (ALONE, {"stop": "..........9999.."}, [(10, "stop")]),
    "a word after much talk is not": (ALONE, {"unknown": "..XXXXX.", "stop": ".......9"}, []),
    "exactly as much talk as allowed": (ALONE, {"unknown": "..XXXX.", "stop": "......9."}, [(6, "stop")]),
    "one hop more than allowed": (ALONE, {"unknown": ".XXXXX.", "stop": "......9."}, []),
    "pauses in the talk do not matter": (ALONE, {"unknown": "X.X.X.X.X.", "stop": ".........9"}, []),
    "talk before what is looked back on is forgotten": (
        ALONE,
        {"unknown": "XXXXX......", "stop": "..........9"},
        [(10, "stop")],
    ),
    "talk within it is not": (ALONE, {"unknown": "XXXXX.....", "stop": ".........9"}, []),
    "off for one keyword leaves it on for the other": (
        ALONE | {"isolation_speech": [4 * HOP, -1]},
        {"unknown": "XXXXX......", "stop": ".......9...", "up": ".........9."},
        [(9, "up")],
    ),
    "every keyword has a limit of its own": (
        ALONE | {"isolation_speech": [4 * HOP, 6 * HOP]},
        {"unknown": "XXXXX.....", "stop": ".......9..", "up": "........9."},
        [(8, "up")],
    ),
    "off for all": (ALONE | {"isolation_speech": -1}, {"unknown": "XXXXXXX...", "stop": "........9."}, [(8, "stop")]),
    "what may as well be music is no talk": (ALONE, {"unknown": "6666666.", "stop": ".......9"}, [(7, "stop")]),
    "another command is no talk": (ALONE, {"up": "XXXXXXX.", "stop": ".......9"}, [(0, "up"), (7, "stop")]),
    "a word held until the talk is forgotten": (
        ALONE | {"threshold": 0.45},
        {"unknown": "XXXXX..........", "stop": "......555555555"},
        [(10, "stop")],
    ),
    "a gap forgets the talk": (ALONE, {"unknown": "XXXXXXXX|.", "stop": "........|9"}, [(8, "stop")]),
}


@pytest.mark.parametrize(("changed", "lines", "expected"), ISOLATION.values(), ids=ISOLATION.keys())
def test_isolation(changed, lines, expected):
    assert heard(rules(**changed), **lines) == expected


def test_isolation_needs_a_label_for_other_speech():
    with pytest.raises(ValueError, match="_unknown_"):
        Debouncer(rules(isolation=HOP, isolation_speech=[-1, 0]), ("_silence_", "stop", "up"), 1)


# --- wariness ---

WARY = {"wary": 30 * HOP, "wary_threshold": 0.9}  # more than 3 of 30 hops

WARINESS = {
    "what stirs is not yet much": (WARY, {"stop": "1.2.5.......8"}, [(12, "stop")]),
    "where it is much a word must be plainer": (WARY, {"stop": "1.2.5.1.....8"}, []),
    "a plain one is heard": (WARY, {"stop": "1.2.5.1.....9"}, [(12, "stop")]),
    "whichever keyword it was": (WARY, {"stop": "1.2.........8", "up": "....5.1......"}, []),
    "off": (WARY | {"wary": 0}, {"stop": "1.2.5.1.....8"}, [(12, "stop")]),
    "what is below a tenth does not stir": (WARY, {"stop": "............8", "unknown": "XXXXXXXX"}, [(12, "stop")]),
    "a threshold that is higher stays": (WARY | {"threshold": 0.95}, {"stop": "1.2.5.1....9X"}, [(12, "stop")]),
    "what rose to a word was that word": (WARY, {"stop": "1257X......8"}, [(4, "stop"), (11, "stop")]),
    "what was like a word may have been one": (WARY, {"stop": "6.6.6.6.6.8"}, [(10, "stop")]),
    "what was told may last": (WARY, {"stop": "9555555555....8"}, [(0, "stop"), (14, "stop")]),
    "only a second before a word was that word": (
        WARY,
        {"stop": "1212...........X...8"},
        [(15, "stop")],
    ),
    "longer ago than is looked back on": (WARY, {"stop": "1.2.5.1" + "." * 25 + "8"}, [(32, "stop")]),
    "a gap forgets it": (WARY, {"stop": "1.2.5.1.|...8"}, [(11, "stop")]),
}


@pytest.mark.parametrize(("changed", "lines", "expected"), WARINESS.values(), ids=WARINESS.keys())
def test_wariness(changed, lines, expected):
    assert heard(rules(**changed), **lines) == expected


def test_a_detection_and_a_near_miss_say_what_was_needed():
    near = NearMisses(rules(**WARY), 1)
    for judge in (Debouncer(rules(**WARY), LABELS, 1), Debouncer(rules(**WARY), LABELS, 1, near)):
        rows, ends = drawn(stop="1.2.5.1............8...9..")
        (detection,) = judge.step(np.zeros(len(ends), np.int64), ends, rows)
        assert (detection.end, detection.threshold) == (ends[23], pytest.approx(0.9))
    (miss,) = near.take()
    assert (miss.end, miss.threshold, miss.reason) == (ends[19], pytest.approx(0.9), "threshold")


def test_what_is_needed_now_can_be_asked():
    debouncer, needed = Debouncer(rules(**WARY), LABELS, 2), []
    for row, end in zip(*drawn(stop="1.2.5.1."), strict=True):
        list(debouncer.step(np.array([1]), np.array([end]), row[None]))
        needed.append(debouncer.needed(np.array([0, 1])).ravel().tolist())
    assert needed[5] == [0.75] * 4
    assert needed[6] == pytest.approx([0.75, 0.75, 0.9, 0.9])


def test_a_model_without_that_label_works_with_isolation_off():
    debouncer = Debouncer(rules(), ("stop", "up", "down"), 1)
    rows = np.array([[0.1, 0.1, 0.8], [0.9, 0.1, 0.0], [0.1, 0.9, 0.0]], np.float32)
    assert run(debouncer, rows, np.array([16_000, 17_600, 19_200])) == [(1, "stop"), (2, "up")]


def test_a_keyword_the_model_does_not_know_is_refused():
    with pytest.raises(ValueError, match="tuple"):
        Debouncer(rules(keywords=("stop", "halt")), LABELS, 1)


# --- what a detection says ---


def test_a_detection_says_what_decided_it():
    rows, ends = drawn(stop="..5X", up="..4.", unknown="XX1.")
    debouncer = Debouncer(rules(smoothing=2, threshold=[0.75, 0.9]), LABELS, 3)
    streams = np.full(len(ends), 2)
    (detection,) = debouncer.step(streams, ends, rows)
    assert dataclasses.asdict(detection) == {
        "stream": 2,
        "keyword": "stop",
        "score": 0.75,
        "threshold": 0.75,
        "runner_up": "up",
        "runner_up_score": pytest.approx(0.2),
        "end": 16_000 + 3 * HOP,
    }
    assert {type(value) for value in dataclasses.astuple(detection)} == {int, str, float}


# --- inherit ---


def successor(old, new_rules, labels=LABELS):
    debouncer = Debouncer(new_rules, labels, 1)
    debouncer.inherit(old)
    return debouncer


def reloaded(before, after, stop="", up="", labels=LABELS):
    """Hops at which words are heard when the rules change at `/`."""
    at = max(stop.find("/"), up.find("/"))
    rows, ends = drawn(stop=stop.replace("/", ""), up=up.replace("/", ""))
    old = Debouncer(before, LABELS, 1)
    first = run(old, rows[:at], ends[:at])
    columns = [LABELS.index(label) for label in labels]
    second = run(successor(old, after, labels), rows[at:][:, columns], ends[at:])
    return first + [(at + hop, keyword) for hop, keyword in second]


lines = st.text("..29X", max_size=24)


@settings(deadline=None, max_examples=200)
@given(stop=lines, up=lines, unknown=lines, gap=st.booleans(), data=st.data())
def test_one_that_remembers_another_goes_on_as_that_one_would_have(stop, up, unknown, gap, data):
    rows, ends = drawn(stop + "9", up, unknown + ("|..." if gap else ""))
    at = data.draw(st.integers(0, len(rows) - 1))
    own = rules(smoothing=2, isolation_speech=2 * HOP, isolation=5 * HOP, refractory=3 * HOP, wary=8 * HOP)
    whole = run(Debouncer(own, LABELS, 1), rows, ends)
    old = Debouncer(own, LABELS, 1)
    before = run(old, rows[:at], ends[:at])
    new = Debouncer(own, LABELS, 1)
    new.inherit(old)
    new.remember(old, np.array([ends[at]]))
    after = run(new, rows[at:], ends[at:])
    assert before + [(at + hop, keyword) for hop, keyword in after] == whole


def test_what_is_remembered_holds_at_another_hop():
    """Talk until just now, heard hop by hop: a word said into it counts for nothing at twice the hop either."""
    own = rules(isolation_speech=3 * HOP, isolation=8 * HOP, smoothing=2)
    wide = dataclasses.replace(own, hop=2 * HOP, smoothing=1)
    rows, ends = drawn(stop="........XX", unknown="XXXXXXXX..")
    old = Debouncer(own, LABELS, 1)
    assert run(old, rows[:8], ends[:8]) == []
    for remembers in (True, False):
        new = Debouncer(wide, LABELS, 1)
        if remembers:
            new.remember(old, ends[9:10])
        assert run(new, rows[9:], ends[9:]) == ([] if remembers else [(0, "stop")])


RELOADS = {
    "a held word is not told again": (rules(), rules(), {"stop": ".99/9999"}, [(1, "stop")]),
    "nor while the mean fills anew": (
        rules(smoothing=3),
        rules(smoothing=3),
        {"stop": ".9999/999999"},
        [(3, "stop")],
    ),
    "a refractory time runs on": (
        rules(refractory=6 * HOP),
        rules(refractory=6 * HOP),
        {"stop": ".9../..9.9"},
        [(1, "stop"), (8, "stop")],
    ),
    "the new refractory time is what counts": (
        rules(refractory=60 * HOP),
        rules(refractory=4 * HOP),
        {"stop": ".9../..9.9"},
        [(1, "stop"), (6, "stop")],
    ),
    "a new keyword is armed": (rules(("stop",)), rules(), {"up": ".99/999"}, [(3, "up")]),
    "keywords are known by name, not by place": (
        rules(("stop", "up")),
        rules(("up", "stop")),
        {"stop": ".99/9...", "up": ".../...9"},
        [(1, "stop"), (6, "up")],
    ),
    "hits in a row begin anew": (rules(min_hits=3), rules(min_hits=3), {"stop": ".99/999"}, [(5, "stop")]),
}


@pytest.mark.parametrize(("before", "after", "lines", "expected"), RELOADS.values(), ids=RELOADS.keys())
def test_after_a_reload(before, after, lines, expected):
    assert reloaded(before, after, **lines) == expected


def test_after_a_reload_with_another_model_labels_are_known_by_name():
    lines = {"stop": ".99/9...9", "up": ".../..9.."}
    assert reloaded(rules(), rules(("up", "stop")), **lines, labels=("up", "_silence_", "stop")) == [
        (1, "stop"),
        (5, "up"),
        (7, "stop"),
    ]


# --- many streams ---

characters = st.sampled_from("..25789X")
windows = st.lists(
    st.tuples(
        st.integers(0, 3),  # stream
        st.sampled_from([1, 1, 1, 1, 1, 4]),  # hops since the stream's last window
        characters,  # stop
        characters,  # up
    ),
    max_size=80,
)
any_rules = st.builds(
    rules,
    threshold=st.tuples(*[st.sampled_from([0.375, 0.5, 0.75])] * 2),
    release=st.tuples(*[st.sampled_from([0.125, 0.25, 0.375])] * 2),
    margin=st.sampled_from([0.0, 0.25]),
    min_hits=st.tuples(*[st.integers(1, 3)] * 2),
    refractory=st.tuples(*[st.integers(0, 6 * HOP)] * 2),
    isolation=st.sampled_from([0, 5 * HOP]),
    isolation_speech=st.tuples(*[st.sampled_from([-1, 2 * HOP])] * 2),
    wary=st.sampled_from([0, HOP, 8 * HOP, 30 * HOP]),
    wary_threshold=st.sampled_from([0.25, 0.875]),
    smoothing=st.sampled_from([1, 2, 4]),
)


def laid_out(windows):
    """Streams (n,), ends (n,) and posteriors (n, labels) in eighths, whose sums and means are exact."""
    last, streams, ends, rows = dict.fromkeys(range(4), 16_000), [], [], []
    for stream, hops, *levels in windows:
        last[stream] += hops * HOP
        stop, up = (round(posterior(level) * 8) / 8 for level in levels)
        streams.append(stream)
        ends.append(last[stream])
        rows.append([0.125, max(0.0, 0.875 - stop - up), stop, up])
    return np.array(streams, np.int64), np.array(ends, np.int64), np.array(rows, np.float32).reshape(-1, 4)


@settings(deadline=None, max_examples=150)
@given(windows=windows, rules=any_rules, cuts=st.lists(st.integers(0, 80), max_size=8))
def test_many_streams_in_any_batches_are_heard_as_if_one_by_one(windows, rules, cuts):
    streams, ends, rows = laid_out(windows)
    together = Debouncer(rules, LABELS, 4)
    edges = [0, *sorted(min(cut, len(ends)) for cut in cuts), len(ends)]
    batched = [
        detection
        for a, b in itertools.pairwise(edges)
        for detection in together.step(streams[a:b], ends[a:b], rows[a:b])
    ]
    for stream in range(4):
        alone, single = Debouncer(rules, LABELS, 1), []
        for at in np.flatnonzero(streams == stream):
            single += alone.step(np.array([0]), ends[at : at + 1], rows[at : at + 1])
        mine = [dataclasses.replace(d, stream=0) for d in batched if d.stream == stream]
        assert mine == single


STATE = (
    "_recent", "_speech", "_stirred", "_count", "_last_end", "_hits", "_stirring", "_armed", "_unsettled", "_fired_at"
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(windows=windows, rules=any_rules, seed=st.integers(0, 99), batch=st.integers(1, 40))
def test_compiled_it_decides_the_same_to_the_last_bit_and_remembers_the_same(windows, rules, seed, batch):
    streams, ends, rows = laid_out(windows)
    noise = np.random.default_rng(seed).uniform(0, 0.2, rows.shape).astype(np.float32)
    rows, one, other = rows + noise, debouncer.Debouncer(rules, LABELS, 4), make_debouncer(rules, LABELS, 4)
    assert isinstance(other, CompiledDebouncer) or compiled.library(*compiled_debouncer.PART) is None
    for at in range(0, len(ends), batch):
        some = slice(at, at + batch)
        said, again = (list(form.step(streams[some], ends[some], rows[some])) for form in (one, other))
        assert (said, one.stirs) == (again, other.stirs)
        for name in STATE:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)


def test_nothing_is_ahead_of_a_rival_that_is_no_number():
    rows, ends = drawn(stop="...9...9...", up="...1...1...")
    rows[3:6, 3] = np.nan
    assert run(Debouncer(rules(), LABELS, 1), rows, ends) == [(7, "stop")]


def test_more_windows_than_there_is_room_for_at_once_are_judged_all():
    rows, ends = drawn(stop=("9" + "." * 9) * 30)
    assert len(rows) > 2 * compiled_debouncer.AT_ONCE
    found = Debouncer(rules(), LABELS, 1).step(np.zeros(len(rows), np.int64), ends, rows)
    assert [detection.end for detection in found] == ends[::10].tolist()


def test_a_stream_that_there_is_not_is_refused():
    with pytest.raises((AssertionError, IndexError)):
        list(Debouncer(rules(), LABELS, 2).step(np.array([2]), np.array([16_000]), np.zeros((1, 4), np.float32)))


@pytest.mark.parametrize("library", ["kwsd._nowhere", "json"])
def test_where_nothing_was_compiled_numpy_decides(monkeypatch, library):
    monkeypatch.setattr(compiled, "LIBRARY", library)
    compiled.library.cache_clear()
    try:
        assert type(make_debouncer(rules(), LABELS, 1)) is debouncer.Debouncer
    finally:
        compiled.library.cache_clear()


@pytest.mark.parametrize(("more", "function"), [(8, "step"), (0, "dances")])
def test_what_was_compiled_of_another_version_is_not_called(monkeypatch, more, function):
    name, interface, *functions = compiled_debouncer.PART
    monkeypatch.setattr(compiled_debouncer, "PART", (name, interface + more, *functions, function))
    assert type(make_debouncer(rules(), LABELS, 1)) is debouncer.Debouncer


stretches = st.lists(
    st.tuples(
        st.integers(2, 12),  # hops of quiet
        st.sampled_from(["", "1", "2", "89X9", "9.99"]),  # stop, after them
        st.sampled_from([1, 1, 1, 4]),  # hops until the next stretch
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=150)
@given(stretches=stretches, rules=any_rules, batch=st.integers(2, 4), noise=st.integers(0, 9))
def test_windows_of_one_microphone_that_waited_for_each_other_are_heard_as_if_one_by_one(
    stretches, rules, batch, noise
):
    levels = "".join("." * quiet + said for quiet, said, _ in stretches)
    hops = [hop for quiet, said, gap in stretches for hop in [1] * (quiet + len(said) - 1) + [gap]]
    ends = 16_000 + np.cumsum(hops) * HOP
    rows = np.random.default_rng(noise).dirichlet([1, 1], len(hops)).astype(np.float32)
    rows = np.pad(rows, ((0, 0), (0, 2)), constant_values=0.03)
    for at, level in enumerate(levels):
        if level != ".":
            rows[at] *= 1.0 - posterior(level)
            rows[at, 2] = posterior(level)
    together, alone = Debouncer(rules, LABELS, 1), Debouncer(rules, LABELS, 1)
    for a in range(0, len(ends), batch):
        b = min(a + batch, len(ends))
        stream = np.zeros(b - a, np.int64)
        batched = list(together.step(stream, ends[a:b], rows[a:b]))
        single = [d for at in range(a, b) for d in alone.step(stream[:1], ends[at : at + 1], rows[at : at + 1])]
        assert batched == single
        assert together.stirs == alone.stirs
        assert together.scores(np.array([0])).tobytes() == alone.scores(np.array([0])).tobytes()


def test_a_thousand_streams_at_once():
    rows, ends = drawn(stop="..99..9..")
    debouncer, found = Debouncer(rules(), LABELS, 1000), []
    for hop, (row, end) in enumerate(zip(rows, ends, strict=True)):
        talking = np.arange(hop % 2, 1000, 2)
        quiet = np.setdiff1d(np.arange(1000), talking)
        posteriors = np.zeros((1000, len(LABELS)), np.float32)
        posteriors[talking] = row
        posteriors[quiet, SILENCE] = 1.0
        found += debouncer.step(np.arange(1000), np.full(1000, end), posteriors)
    assert sorted({detection.end for detection in found}) == [ends[2], ends[3], ends[6]]
    assert len(found) == 1500


# --- near misses ---


def missed(rules, **lines):
    """[(hop at which it is told, keyword, hop that scored best, score, reason)] of a fresh debouncer."""
    near = NearMisses(rules, 1)
    debouncer = Debouncer(rules, LABELS, 1, near)
    rows, ends = drawn(**lines)
    found = []
    for hop, (row, end) in enumerate(zip(rows, ends, strict=True)):
        list(debouncer.step(np.array([0]), np.array([end]), row[None]))
        for miss in near.take():
            best = ends.tolist().index(miss.end)
            found.append((hop, miss.keyword, best, round(miss.score, 2), miss.reason))
    return found


@pytest.mark.parametrize(
    ("rules", "lines", "expected"),
    [
        (rules(), {"stop": "..5...."}, []),  # not half way from release to threshold
        (rules(), {"stop": "..6...."}, [(3, "stop", 2, 0.6, "threshold")]),
        (rules(), {"stop": "..6464."}, [(6, "stop", 2, 0.6, "threshold")]),  # not under release in between
        (rules(), {"stop": "..676..7.."}, [(5, "stop", 3, 0.7, "threshold"), (8, "stop", 7, 0.7, "threshold")]),
        (rules(), {"stop": "..6"}, []),  # not over yet
        (rules(), {"stop": "..69.."}, []),  # told
        (rules(), {"stop": "..969669."}, []),  # all of it one word, told once
        (rules(), {"stop": "..6.", "up": "...6.."}, [(3, "stop", 2, 0.6, "threshold"), (4, "up", 3, 0.6, "threshold")]),
        (rules(margin=0.7), {"stop": "..8.."}, [(3, "stop", 2, 0.8, "margin")]),
        (rules(min_hits=2), {"stop": "..9.."}, [(3, "stop", 2, 0.9, "min_hits")]),
        (rules(min_hits=2), {"stop": "..969."}, [(5, "stop", 2, 0.9, "min_hits")]),  # the rule that came furthest
        (
            rules(isolation=10 * HOP, isolation_speech=2 * HOP),
            {"unknown": "XXX.", "stop": "....9.."},
            [(5, "stop", 4, 0.9, "isolation")],
        ),
        (rules(refractory=10 * HOP), {"stop": "9...9...."}, [(5, "stop", 4, 0.9, "refractory")]),
        (rules(), {"stop": "..6|..."}, []),  # nobody knows what was in the gap
        (rules(), {"stop": "..9|.6.."}, [(5, "stop", 4, 0.6, "threshold")]),  # not the word that was told before it
        (rules(min_hits=2), {"stop": "..9|.6.."}, [(5, "stop", 4, 0.6, "threshold")]),  # nor as far as before it
        (rules(smoothing=3), {"stop": "..XX....."}, [(5, "stop", 3, 0.67, "threshold")]),
    ],
)
def test_a_near_miss_is_told_once_it_has_fallen_with_the_rule_that_was_in_the_way(rules, lines, expected):
    assert missed(rules, **lines) == expected


@settings(deadline=None, max_examples=100)
@given(windows=windows, rules=any_rules)
def test_watching_near_misses_changes_nothing_that_is_heard(windows, rules):
    _, ends, rows = laid_out([(0, *rest) for _, *rest in windows])
    watched = run(Debouncer(rules, LABELS, 1, NearMisses(rules, 1)), rows, ends)
    assert watched == run(Debouncer(rules, LABELS, 1), rows, ends)


def test_near_misses_of_many_streams_stay_apart():
    near = NearMisses(rules(), 3)
    debouncer = Debouncer(rules(), LABELS, 3, near)
    rows, ends = drawn(stop="..6..", up=".....")
    quiet, _ = drawn(up=".....")
    for row, still, end in zip(rows, quiet, ends, strict=True):
        list(debouncer.step(np.array([0, 2]), np.array([end, end]), np.stack([still, row])))
    assert [(miss.stream, miss.keyword) for miss in near.take()] == [(2, "stop")]
    assert near.take() == []


# --- against an obviously correct model ---


class Listener:
    """One keyword in one stream, by the book: lists of everything since the last gap."""

    def __init__(self, rules, k):
        self.rules, self.column = rules, LABELS.index(rules.keywords[k])
        self.threshold, self.release = rules.threshold[k], rules.release[k]
        self.near = (self.threshold + self.release) / 2
        self.margin, self.min_hits = rules.margin[k], rules.min_hits[k]
        self.refractory, self.speech = rules.refractory[k], rules.isolation_speech[k]
        self.last = self.fired = None
        self.armed = True

    def hears(self, end, row, needed):
        if self.last is None or end - self.last != HOP:
            self.rows, self.hits = [], []
        self.last = end
        self.rows.append(row)
        self.stirs, self.is_word = row[self.column] >= 0.1, False
        if len(self.rows) < self.rules.smoothing:
            return False
        mean = np.mean(self.rows[-self.rules.smoothing :], axis=0)
        score, rival = mean[self.column], max(np.delete(mean, self.column))
        self.hits.append(score >= max(needed, self.threshold) and score - rival >= self.margin)
        told = self.armed and self.enough_hits() and self.alone()
        if told:
            self.armed, self.fired = False, end
        elif not self.armed and score < self.release and end - self.fired >= self.refractory:
            self.armed = True
        self.stirs &= self.armed or score < self.release
        self.is_word = score >= self.near
        return told

    def enough_hits(self):
        return len(self.hits) >= self.min_hits and all(self.hits[-self.min_hits :])

    def alone(self):
        lookback = max(1, self.rules.isolation // HOP)
        talk = sum(row[UNKNOWN] > 0.6 for row in self.rows[-lookback:])
        return self.speech < 0 or talk * HOP <= self.speech


@settings(deadline=None, max_examples=150)
@given(windows=windows, rules=any_rules)
@example(windows=[(0, 1, "X", "."), (0, 1, "X", "."), (0, 4, "X", "."), (0, 1, "X", ".")], rules=rules(smoothing=2))
def test_any_stream_is_heard_as_by_the_book(windows, rules):
    _, ends, rows = laid_out([(0, *rest) for _, *rest in windows])
    listeners = [Listener(rules, k) for k in range(2)]
    expected, stirred, last = [], [], None
    for hop, (end, row) in enumerate(zip(ends, rows, strict=True)):
        if last is None or end - last != HOP:
            stirred = []
        last = end
        lookback = max(1, rules.wary // HOP)
        wary = rules.wary and sum(stirred[-lookback:]) > int(0.12 * lookback)
        told = [listener.hears(end, row, rules.wary_threshold if wary else 0.0) for listener in listeners]
        stirred.append(any(listener.stirs for listener in listeners))
        if any(listener.is_word for listener in listeners):
            stirred[-SECOND - 1 :] = [False] * len(stirred[-SECOND - 1 :])
        expected += [(hop, keyword) for keyword, tells in zip(KEYWORDS, told, strict=True) if tells]
    assert run(Debouncer(rules, LABELS, 1), rows, ends) == expected


# --- what may be put off ---


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(*[st.sampled_from("..1259X")] * 2), min_size=1, max_size=60),
    st.sampled_from([2, 3]),
    st.sampled_from([0, 8_000]),
)
def test_the_window_before_one_that_tells_a_keyword_stirs(hops, smoothing, refractory):
    debouncer = Debouncer(rules(smoothing=smoothing, refractory=refractory), LABELS, 1)
    rows, ends = drawn(stop="".join(stop for stop, _ in hops), up="".join(up for _, up in hops))
    for row, end in zip(rows, ends, strict=True):
        stirred = debouncer.stirs
        if list(debouncer.step(np.array([0]), np.array([end]), row[None])):
            assert stirred


def test_a_keyword_that_was_told_stirs_no_more_until_it_has_fallen():
    debouncer = Debouncer(rules(smoothing=2), LABELS, 1)
    stirs = ""
    for row, end in zip(*drawn(stop="..299999..99.."), strict=True):
        told = list(debouncer.step(np.array([0]), np.array([end]), row[None]))
        stirs += "!" if told else ".X"[debouncer.stirs]
        assert not (told and debouncer.stirs)
    assert stirs == "..XX!.....X!.."


def test_a_stream_that_stirs_is_not_forgotten_over_another_and_is_when_it_begins_anew():
    debouncer = Debouncer(rules(smoothing=2), LABELS, 2)
    assert debouncer.stirs, "nobody knows yet"
    rows, ends = drawn(stop=".5")
    list(debouncer.step(np.array([0, 1, 0, 1]), np.repeat(ends, 2), rows[[0, 0, 1, 0]]))
    assert debouncer.stirs
    debouncer.reset(np.array([0]))
    assert not debouncer.stirs
