"""What docs/traces.md says of searching traces: each Jaeger search against a real Jaeger, TraceQL by its grammar."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from gpumon import instrumentor
from gpumon.export import export
from otlp_receiver import eventually
from peers import Jaeger, needs_jaeger, tags
from recorded import RUN_ID, Recorder, step_spans, write_run

PAGE = (Path(__file__).parents[1] / "docs" / "traces.md").read_text(encoding="utf-8")
TRACEQL = re.findall(r"^```traceql\n(.+?)^```", PAGE, re.MULTILINE | re.DOTALL)
GRAMMAR = {"@grafana/lezer-traceql": "1.0.0", "@lezer/lr": "1.4.12", "@lezer/common": "1.5.5"}
ON_DISK = {"gpumon.window.disk.device": "nvme0n1", "gpumon.window.disk.await": 0.093}
ON_DISK |= {"gpumon.window.disk.utilization": 0.98, "gpumon.window.gpu.utilization": 0.12}
BUSY_GPU = {"gpumon.window.disk.device": "nvme0n1", "gpumon.window.disk.await": 0.0004}
BUSY_GPU |= {"gpumon.window.disk.utilization": 0.03, "gpumon.window.gpu.utilization": 0.97}

SEARCHES = {
    "slow steps": {3, 5},
    "slow steps of at least 250 ms": {3},
    "long waits for data": {3},
    "steps that failed": {4},
    "steps that failed of one kind": {4},
    "first steps of epochs": {1},
    "one step": {3},
    "steps over one disk": {3, 5},
    "one run's steps": {1, 2, 3, 4, 5},
}
"""Which of the run's steps each search of the table is to find."""


def rows():
    """{what: (service, operation, tags as in the search form, minimum duration)} of the table of searches."""
    table = PAGE.partition("| what | operation |")[2].partition("\n\n")[0]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {what: (operation, wanted, duration) for what, operation, wanted, duration in cells}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a moment ago: a first step, a sample, one slow by the disk, one failed, one slow for another reason."""
    folder = tmp_path_factory.mktemp("runs") / "train"
    recorder, now = Recorder(folder), time.time() - 60
    fast = {"data.wait": 0.01, "forward": 0.03, "backward": 0.05, "optimizer": 0.01}
    recorder.write_spans(
        [
            *step_spans(1, now, 0.15, {**fast, "data.wait": 0.05}, "first_of_epoch"),
            *step_spans(2, now + 1, 0.1, fast),
            *step_spans(3, now + 2, 0.42, {**fast, "data.wait": 0.33}, "slow", **ON_DISK),
            *step_spans(4, now + 3, 0.05, {"data.wait": 0.01}, "failed", **{"error.type": "ValueError"}),
            *step_spans(5, now + 4, 0.22, {**fast, "forward": 0.15}, "slow", **BUSY_GPU),
        ]
    )
    write_run(folder, ended_s=now + 5)
    return folder


@pytest.fixture(scope="module")
def jaeger(run, tmp_path_factory):
    with Jaeger(tmp_path_factory.mktemp("jaeger")) as jaeger:
        assert export(run, jaeger.http, signals=("traces",)).sent["traces"] > 5
        eventually(lambda: len(jaeger.traces("train")) == 5, timeout_s=30)
        yield jaeger


def numbers(traces):
    return {
        tags(span)["gpumon.step.number"]
        for trace in traces
        for span in trace["spans"]
        if span["operationName"] in ("train.step", "validation.step")
    }


def test_the_table_has_these_searches():
    assert set(rows()) == set(SEARCHES)


@needs_jaeger
@pytest.mark.parametrize("what", SEARCHES)
def test_a_search_finds_its_steps(jaeger, what):
    operation, wanted, duration = rows()[what]
    parameters = {"operation": operation} if operation else {}
    if wanted:
        pairs = dict(each.split("=", 1) for each in wanted.replace("RUN_ID", RUN_ID).split())
        parameters["tags"] = json.dumps(pairs)
    if duration:
        parameters["minDuration"] = duration
    assert numbers(jaeger.traces("train", **parameters)) == SEARCHES[what]


@needs_jaeger
def test_the_commands_find_what_the_page_shows(jaeger):
    """The page's curl commands, their parameters as they stand; and of what they print, all that a trace has."""
    commands = re.findall(r"^\$ (curl .+?) \|\n", PAGE, re.MULTILINE | re.DOTALL)
    assert commands
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "))
        given = [after for word, after in itertools.pairwise(words) if word in ("-d", "--data-urlencode")]
        parameters = dict(each.split("=", 1) for each in given)
        found = jaeger.get(next(word for word in words if word.startswith("http")).partition(":16686")[2], **parameters)
        assert numbers(found["data"]) == {3}
        (step,) = [span for span in found["data"][0]["spans"] if span["operationName"] == "train.step"]
        shown = tags(step)
        for name, value in re.findall(r'^ +"(gpumon[.a-z_]+)": (.+?),?$', PAGE, re.MULTILINE):
            assert shown[name] == json.loads(value), name


def test_attributes_of_the_page_are_those_that_steps_have():
    """Every `gpumon.window.…` that is named here is written by the code."""
    source = Path(instrumentor.__file__).read_text(encoding="utf-8")
    for name in set(re.findall(r"gpumon\.window\.[a-z_.]*[a-z]", PAGE)):
        assert name in source or (name.startswith("gpumon.window.disk.") and f'("{name[19:]}", ' in source), name


@pytest.fixture(scope="module")
def is_traceql(tmp_path_factory):
    """Tells whether Grafana's grammar of TraceQL takes a query."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no node or npm: apt-get install nodejs npm, or nodejs.org")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpumon-tests" / "traceql"
    cache.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps({"private": True, "type": "module", "dependencies": GRAMMAR})
    if not (cache / "node_modules").is_dir() or (cache / "package.json").read_text() != wanted:
        (cache / "package.json").write_text(wanted)
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
        subprocess.run(command, cwd=cache, check=True, timeout=120)
    script = cache / "parse.mjs"
    script.write_text(
        'import { parser } from "@grafana/lezer-traceql";\n'
        "let wrong = 0;\n"
        "parser.parse(process.argv[2]).iterate({ enter(node) { wrong += node.type.isError } });\n"
        "process.exit(wrong ? 1 : 0);\n"
    )

    def is_traceql(query):
        done = subprocess.run(["node", script, query], cwd=cache, capture_output=True, text=True, timeout=60)
        assert done.returncode in (0, 1) and not done.stderr, done.stderr
        return done.returncode == 0

    return is_traceql


def test_the_grammar_refuses_what_is_wrong(is_traceql):
    assert not is_traceql("{ span.gpumon.window.disk.await > }")
    assert not is_traceql("{ gpumon slow }")


@pytest.mark.parametrize("query", TRACEQL)
def test_a_query_is_traceql(is_traceql, query):
    assert is_traceql(query.strip())


def test_queries_compare_seconds_as_numbers():
    """A duration such as 50ms is nanoseconds beside an attribute: it would find nothing, and without a word."""
    assert len(TRACEQL) >= 5
    assert any("span.gpumon.window.disk.await > 0.05" in query for query in TRACEQL)
    for query in TRACEQL:
        assert not re.search(r"gpumon\.window[.\w]* *[<>=]+ *[\d.]+ *(ns|us|ms|s|m|h)\b", query), query
