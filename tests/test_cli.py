"""The command line: help with examples, one clear line for every error, the documented exit codes."""

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import click
import jsonschema
import pytest

from gpumon import cli

DOCS = Path(__file__).parents[1] / "docs"


def gpumon(*arguments, cwd=None, **environment):
    """Run the command line as a user would, without the tests' GPUMON_STRICT."""
    return subprocess.run(
        [sys.executable, "-m", "gpumon", *arguments],
        cwd=cwd,
        env={**os.environ, "GPUMON_STRICT": "", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def main(capsys, *arguments):
    """Run the command line in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


@pytest.mark.parametrize("name", sorted(cli.commands.commands))
def test_every_command_has_help_with_an_example_and_is_documented(capsys, name):
    """`gpumon COMMAND --help` shows how to call it, line by line; docs/commands.md has it too."""
    code, out, _ = main(capsys, name, "--help")

    assert code == 0
    examples = out.split("Examples:\n", 1)[1].split("\n\n")[0].splitlines()
    assert examples and all(line.strip().startswith(f"gpumon {name}") for line in examples)
    assert f"## gpumon {name}\n" in (DOCS / "commands.md").read_text(encoding="utf-8")


def test_help_lists_every_command_without_cutting_it(capsys):
    """The first page says what each command does, whole."""
    code, out, _ = main(capsys, "--help")

    assert code == 0
    assert "..." not in out.replace("[ARGS]...", "")
    assert all(f"\n  {name} " in out for name in cli.commands.commands)


def test_options_have_help():
    """No option without an explanation."""
    for name, command in cli.commands.commands.items():
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, (name, option.name)


def test_help_answers_at_once():
    """`gpumon --help` loads neither the SDK, nor DuckDB, rich, torch, or a device library."""
    code = (
        "import sys; from gpumon import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'duckdb', 'rich', 'opentelemetry.sdk', 'pynvml', 'pySMART')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


def test_version(capsys):
    """`gpumon --version` names itself and its version."""
    from gpumon import __version__

    assert main(capsys, "--version") == (0, f"gpumon {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["reprot"], "gpumon: no such command 'reprot'"),
        (["run"], "gpumon: missing argument '-- CMD [ARG]...' (see `gpumon run --help`)\n"),
        (["run", "--outt", "x", "--", "true"], "gpumon: no such option"),
        (["run", "--out", "{file}", "--", "true"], "gpumon: invalid value for '--out'"),
        (["report", "a", "b"], "gpumon: got unexpected extra argument (b) (see `gpumon report --help`)\n"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(tmp_path, arguments, line):
    """Said in a line that names the help; nothing on stdout, no traceback."""
    file = tmp_path / "file"
    file.write_text("")
    done = gpumon(*(argument.format(file=file) for argument in arguments), cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_nothing_at_all_shows_the_help():
    """`gpumon` alone is answered with what there is; it is still wrong usage."""
    done = gpumon()

    assert done.returncode == 2
    assert "gpumon run -- python train.py" in done.stderr


def test_no_run_is_one_line_and_exit_code_2(tmp_path):
    """A run that is not there: what was looked for, no traceback."""
    done = gpumon("report", "nowhere", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr.startswith("gpumon: no run at 'nowhere'")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_strict_shows_the_traceback_too(tmp_path):
    """GPUMON_STRICT=1: the same last line, after the traceback."""
    done = gpumon("report", "nowhere", cwd=tmp_path, GPUMON_STRICT="1")

    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("gpumon: no run at 'nowhere'")


def test_recording_into_an_impossible_place_says_so(tmp_path):
    """The command is not started where its recording has no place."""
    (tmp_path / "file").write_text("")
    done = gpumon("run", "--out", "file/run", "--", "touch", "started", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr == "gpumon: cannot record into file/run: Not a directory\n"
    assert not (tmp_path / "started").exists()


def test_report_of_a_run_as_text_and_as_json(tmp_path):
    """The newest run by default; the JSON is what the Python function returns."""
    import gpumon as package

    done = gpumon("run", "--", sys.executable, "-c", "import gpumon", cwd=tmp_path)
    assert done.returncode == 0
    (folder,) = (tmp_path / "gpumon-runs").iterdir()

    text, as_json = gpumon("report", cwd=tmp_path), gpumon("report", str(folder), "--json", cwd=tmp_path)

    assert (text.returncode, as_json.returncode) == (0, 0), text.stderr + as_json.stderr
    assert "\x1b" not in text.stdout
    assert folder.name in text.stdout
    assert text.stdout in done.stderr
    schema = json.loads(resources.files("gpumon.analysis").joinpath("report.schema.json").read_text())
    jsonschema.validate(json.loads(as_json.stdout), schema, cls=jsonschema.Draft202012Validator)
    ours = package.report(folder).as_dict()
    ours["run"].pop("path", None)
    theirs = json.loads(as_json.stdout)
    theirs["run"].pop("path", None)
    assert theirs == json.loads(json.dumps(ours))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_below_the_output_is_no_bug_of_ours():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gpumon", "views", "sql"],
            env={**os.environ, "GPUMON_STRICT": ""},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )

    assert (done.returncode, done.stderr) == (2, "gpumon: cannot write the output: No space left on device\n")


def test_a_reader_that_leaves_is_no_error(tmp_path):
    """`gpumon --help | true` prints no BrokenPipeError."""
    done = subprocess.run(
        f"{sys.executable} -m gpumon --help | true",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )

    assert done.stderr == ""
