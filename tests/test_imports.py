"""Who knows whom: read from the source, at the top of modules and inside functions."""

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import kwsd

PACKAGE = Path(kwsd.__file__).parent
ENGINES = ["engines", "engines.torchscript", "engines.onnx", "engines.native"]
STAGES = ["ring", "window", "spotter", "scoring", "debouncer", "pipeline", "listening", "daemon", "cli"]
PURE = ["audio_format", "ring", "window", "scoring", "debouncer", "span"]
COMMAND_LINE = ("kwsd.__main__.", "kwsd.cli.", "kwsd.arguments.", "kwsd.commands.", "kwsd.terminal.")
HEAVY = ["torch", "torchaudio", "onnxruntime", "sounddevice", "matplotlib"]


def module_name(path):
    parts = ("kwsd", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(source, modules):
    """The names of everything a source text imports, wherever in it; a name in a package is that of a module
    where there is one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules else node.module


def graph_of(sources):
    """{module: the modules of the same package it imports}, of {module: source text}."""
    return {name: {other for other in imported(text, sources) if other in sources} for name, text in sources.items()}


GRAPH = graph_of({name: path.read_text() for name, path in SOURCES.items()})


def reachable(module, graph):
    found, ahead = set(), [module]
    while ahead:
        for other in graph[ahead.pop()] - found:
            found.add(other)
            ahead.append(other)
    return found


DAEMON_PATH = sorted({"kwsd.daemon", "kwsd.replay"} | reachable("kwsd.daemon", GRAPH))


def in_training(modules):
    return sorted(module for module in modules if module.startswith("kwsd.training"))


# --- the test itself sees what it should ---

KNOTTED = {
    "kwsd": "",
    "kwsd.a": "import numpy\nfrom kwsd.b import thing",
    "kwsd.b": "from kwsd import c",
    "kwsd.c": "def later():\n    if True:\n        import kwsd.a",
}


def test_a_cycle_is_seen_even_inside_a_function():
    graph = graph_of(KNOTTED)
    assert graph == {"kwsd": set(), "kwsd.a": {"kwsd.b"}, "kwsd.b": {"kwsd.c"}, "kwsd.c": {"kwsd.a"}}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph).prepare()


def test_the_graph_holds_the_whole_package():
    assert {f"kwsd.{name}" for name in [*ENGINES, *STAGES, *PURE, "training.train", "sinks.stdout"]} <= GRAPH.keys()
    assert {f"kwsd.{name}" for name in [*ENGINES, "sinks.mqtt", "endpoint", "supervisor"]} <= set(DAEMON_PATH)
    assert "kwsd.ring" in GRAPH["kwsd.window"]
    assert "kwsd.daemon" in GRAPH["kwsd.commands.live"]  # inside a function
    assert "kwsd.ring" in reachable("kwsd.cli", GRAPH)


# --- direction ---


def test_imports_form_a_dag():
    graphlib.TopologicalSorter(GRAPH).prepare()


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_a_later_one(stage):
    later = {f"kwsd.{name}" for name in STAGES[STAGES.index(stage) + 1 :]}
    assert not reachable(f"kwsd.{stage}", GRAPH) & later


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_knows_the_spotter_and_no_stage_behind_it(engine):
    known = reachable(f"kwsd.{engine}", GRAPH)
    later = STAGES[STAGES.index("spotter") + 1 :]
    assert "kwsd.spotter" in known
    assert not known & {f"kwsd.{name}" for name in [*later, "replay", "bench"]}


@pytest.mark.parametrize("module", [*STAGES[: STAGES.index("daemon")], "replay"])
def test_whatever_only_uses_a_spotter_knows_no_engine(module):
    assert not reachable(f"kwsd.{module}", GRAPH) & {f"kwsd.{name}" for name in ENGINES}


@pytest.mark.parametrize("module", ["daemon", "bench", "commands.models", "training.export"])
def test_whatever_loads_a_spotter_goes_through_the_engines_one_door(module):
    assert "kwsd.engines" in GRAPH[f"kwsd.{module}"]
    for other in GRAPH:
        assert other == "kwsd.engines" or not GRAPH[other] & {f"kwsd.{name}" for name in ENGINES[1:]}


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_but_the_command_line_knows_the_command_line(module):
    if not f"{module}.".startswith(COMMAND_LINE):
        assert not [known for known in GRAPH[module] if f"{known}.".startswith(COMMAND_LINE)]


# --- training stays out of the daemon ---


@pytest.mark.parametrize("module", DAEMON_PATH)
def test_the_daemon_never_imports_training(module):
    assert in_training(GRAPH[module]) == []
    assert in_training(reachable(module, GRAPH)) == []


@pytest.mark.parametrize("module", DAEMON_PATH)
def test_the_daemon_never_imports_torchaudio(module):
    for name in {module} | reachable(module, GRAPH):
        assert "torchaudio" not in {other.partition(".")[0] for other in imported(SOURCES[name].read_text(), SOURCES)}


def packages_of(module):
    """What it and all it knows import."""
    modules = {module} | reachable(module, GRAPH)
    return {other.partition(".")[0] for name in modules for other in imported(SOURCES[name].read_text(), SOURCES)}


def test_the_engines_for_onnx_know_no_torch_and_ours_no_onnx_runtime():
    assert "torch" not in packages_of("kwsd.engines.onnx") | packages_of("kwsd.engines.native")
    assert "onnxruntime" in packages_of("kwsd.engines.onnx") - packages_of("kwsd.engines.native")


# --- the core is pure ---


@pytest.mark.parametrize("module", PURE)
def test_the_core_knows_no_clock_no_thread_and_no_file(module):
    allowed = {"array", "collections", "dataclasses", "itertools", "math", "typing", "numpy", "kwsd"}
    names = {name.partition(".")[0] for name in imported(SOURCES[f"kwsd.{module}"].read_text(), SOURCES)}
    assert names <= allowed


# --- what is loaded ---


def loaded_by(statement):
    """The modules a fresh interpreter has after a statement."""
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", ["daemon", "cli", "replay"])
def test_importing_it_loads_nothing_heavy(module):
    loaded = loaded_by(f"import kwsd.{module}")
    assert f"kwsd.{module}" in loaded
    assert sorted(loaded & set(HEAVY)) == []
    assert in_training(loaded) == []


LISTEN = """
import pathlib, numpy
from kwsd.engines import load_spotter
from kwsd.ring import RingBuffer
from kwsd.scoring import make_scorer
from kwsd.window import WindowSchedule
spotter = load_spotter(pathlib.Path({path!r}), "auto")
assert spotter.score(numpy.zeros((1, 16_000), numpy.float32)).shape == (1, 3)
ring, schedule = RingBuffer(1, 40_000), WindowSchedule(1, 1600, 16, numpy.array([True]))
ring.write(0, numpy.zeros(20_000, numpy.float32))
assert len(make_scorer(spotter, 1, 1600).score(ring, schedule.take(ring))) == 3
"""


@pytest.mark.parametrize(
    ("model", "suffix", "others"),
    [
        ("dstcn-tiny", ".onnx", {"torch", "onnxruntime", "onnx"}),  # our own
        ("simplenet", ".onnx", {"torch", "onnx"}),
        ("dstcn-tiny", ".pt", {"onnxruntime", "onnx"}),
        ("simplenet", ".pt", {"onnxruntime", "onnx"}),
    ],
)
def test_listening_with_one_engine_loads_nothing_of_the_others(tmp_path, model, suffix, others):
    from test_export import CLIPS, trained

    from kwsd.training.export import export

    path = tmp_path / f"a{suffix}"
    export(trained(model), path, CLIPS)
    loaded = loaded_by(LISTEN.format(path=str(path)))
    assert "kwsd.scoring" in loaded
    assert not others & loaded
    assert in_training(loaded) == []
