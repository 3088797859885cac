"""`gpumon run`, on real commands: what it records, and that the command cannot tell the difference."""

import ast
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import pytest

from gpumon import run as run_module
from gpumon._hook import sitecustomize as hook

GPUMON = [sys.executable, "-m", "gpumon"]
TRAINS = "import gpumon\n"  # enough for the hook to record a process


def start(*command, cwd, options=("--out", "out", "--no-report"), environment=None, **popen):
    return subprocess.Popen(
        [*GPUMON, "run", *options, "--", *map(str, command)],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdout=popen.pop("stdout", subprocess.PIPE),
        stderr=popen.pop("stderr", subprocess.PIPE),
        **popen,
    )


def record(*command, cwd, stdin=b"", **options):
    """Run a command recorded into cwd/out; its code and its two outputs as `subprocess` gives them."""
    process = start(*command, cwd=cwd, stdin=subprocess.PIPE, **options)
    out, err = process.communicate(stdin, timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err.decode())


def run_json(folder):
    return json.loads((folder / "out" / "run.json").read_text())


def script(folder, text, name="train.py"):
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


# -- The command cannot tell the difference -----------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["true"], 0),
    ],
)
def test_exit_code_is_the_commands(tmp_path, command, code):
    """The shell sees what the command ended with, 128+n for a signal; run.json has it too."""
    done = record(*command, cwd=tmp_path)

    assert done.returncode == code
    kept = run_json(tmp_path)
    assert (kept["exit_code"], kept["signal"]) == (code, code - 128 if code > 128 else None)
    assert kept["ended"] >= kept["started"]
    assert kept["command"] == command


@pytest.mark.parametrize(("name", "code"), [("no-such-command", 127), ("./plain.txt", 126), ("./folder", 126)])
def test_commands_that_cannot_start_end_as_in_a_shell(tmp_path, name, code):
    """127 for what is not there, 126 for what cannot be executed, one line, and nothing is left behind."""
    (tmp_path / "plain.txt").write_text("no program")
    (tmp_path / "folder").mkdir()

    done = record(name, cwd=tmp_path)

    assert done.returncode == code
    assert done.stderr.startswith("gpumon: ") and done.stderr.count("\n") == 1 and name in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_damaged_program_leaves_nothing_behind(tmp_path):
    """What only the kernel can refuse (a script whose interpreter is missing) is found out at the start."""
    path = script(tmp_path, "#!/no/such/interpreter\n", "tool")
    path.chmod(0o755)

    done = record("./tool", cwd=tmp_path)

    assert done.returncode == 127
    assert "cannot execute ./tool" in done.stderr
    assert not (tmp_path / "out").exists()


def test_script_without_interpreter_line_runs_as_in_a_shell(tmp_path):
    """A shell script without #! runs, with its arguments."""
    script(tmp_path, 'echo "$0 $1"', "go").chmod(0o755)

    assert record("./go", "a b", cwd=tmp_path).stdout == b"./go a b\n"


def test_stdin_and_stdout_pass_byte_by_byte(tmp_path):
    """The command reads our stdin and writes our stdout itself; nothing is added to either."""
    sent = bytes(range(256)) * 1000

    done = record("cat", cwd=tmp_path, stdin=sent)

    assert done.stdout == sent


def test_arguments_after_the_command_are_the_commands(tmp_path):
    """Options of the command, a second `--`, and empty arguments arrive as they were given."""
    done = record(sys.executable, "-c", "import sys; print(sys.argv[1:])", "--out", "--", "", "-h", cwd=tmp_path)

    assert done.stdout.decode().strip() == "['--out', '--', '', '-h']"


WAITS_FOR_SIGNALS = """
    import signal, sys, time
    got = []
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT"):
        signal.signal(getattr(signal, name), lambda number, frame: got.append(signal.Signals(number).name))
    def end(number, frame):
        print(got, flush=True)
        sys.exit(7)
    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    while True:
        time.sleep(0.02)
"""


def test_signals_are_passed_on(tmp_path):
    """What somebody sends to gpumon reaches the command, which may handle it and end as it likes."""
    process = start(sys.executable, script(tmp_path, WAITS_FOR_SIGNALS), cwd=tmp_path, start_new_session=True)
    assert process.stdout.readline() == b"ready\n"
    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        process.send_signal(getattr(signal, name))
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)

    assert sorted(ast.literal_eval(out.decode())) == ["SIGHUP", "SIGINT", "SIGUSR1"]
    assert process.returncode == 7


def test_a_signal_to_the_whole_group_arrives_once(tmp_path):
    """A scheduler that signals the process group does not make the command save two checkpoints."""
    process = start(sys.executable, script(tmp_path, WAITS_FOR_SIGNALS), cwd=tmp_path, start_new_session=True)
    assert process.stdout.readline() == b"ready\n"
    os.killpg(process.pid, signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)  # a higher number: it comes after anything passed on before
    out, _ = process.communicate(timeout=30)

    assert ast.literal_eval(out.decode()) == ["SIGUSR1"]


def test_terminal_is_the_commands(tmp_path):
    """On a terminal the command is in the foreground, and Ctrl-C interrupts it once."""
    path = script(
        tmp_path,
        """
        import os, signal, time
        assert os.isatty(0) and os.isatty(1) and os.isatty(2)
        assert os.tcgetpgrp(0) == os.getpgrp()
        count = 0
        def interrupted(number, frame):
            global count
            count += 1
        signal.signal(signal.SIGINT, interrupted)
        print("ready", flush=True)
        while not count:
            time.sleep(0.02)
        line = input()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print(f"{line} after {count}", flush=True)
        signal.pause()
        """,
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [*GPUMON, "run", "--out", "out", "--no-report", "--", sys.executable, str(path)])
    read_until(terminal, b"ready")
    os.write(terminal, b"\x03")
    os.write(terminal, b"hello\n")
    read_until(terminal, b"hello after 1")
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)

    assert os.waitstatus_to_exitcode(status) == 130
    assert run_json(tmp_path)["signal"] == signal.SIGINT


def read_until(terminal, expected):
    seen = b""
    while expected not in seen:
        seen += os.read(terminal, 1024)


# -- The hook -----------------------------------------------------------------------------------------


def test_an_interpreter_that_never_trains_notices_nothing(tmp_path):
    """Neither its modules nor its path differ, but for the hook itself."""
    code = "import sys; print(sorted(sys.modules), sys.path)"
    plain = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)

    done = record(sys.executable, "-c", code, cwd=tmp_path)

    assert done.stdout.decode().replace("'sitecustomize', ", "") == plain.stdout.replace("'sitecustomize', ", "")
    assert "nothing was recorded: no Python process of the command imported torch" in done.stderr


@pytest.mark.parametrize("how", ["script", "module", "code", "console script", "child"])
def test_every_way_to_start_python_is_recorded(tmp_path, how):
    """`python train.py`, `python -m`, `python -c`, console scripts, and what a shell script starts."""
    path = script(tmp_path, TRAINS)
    tool = script(tmp_path, f"#!{sys.executable}\n{TRAINS}", "train-tool")
    tool.chmod(0o755)
    commands = {
        "script": [sys.executable, "-u", path],
        "module": [sys.executable, "-m", "train"],
        "code": [sys.executable, "-c", TRAINS],
        "console script": [tool],
        "child": ["sh", "-c", f"{sys.executable} train.py; true"],
    }

    done = record(*commands[how], cwd=tmp_path)

    assert done.returncode == 0
    assert "nothing was recorded" not in done.stderr
    assert len(run_json(tmp_path)["processes"]) == 1
    assert list((tmp_path / "out").glob("metrics.0.*.jsonl"))


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_helper_processes_are_left_alone(tmp_path, method):
    """Children that serve a training process, and the resource tracker, are no processes of the run."""
    path = script(
        tmp_path,
        f"""
        import multiprocessing, sys
        import gpumon
        from multiprocessing import shared_memory

        def work(queue):
            queue.put([type(finder).__name__ for finder in sys.meta_path])

        if __name__ == "__main__":
            context = multiprocessing.get_context("{method}")
            block = shared_memory.SharedMemory(create=True, size=64)  # starts a resource tracker
            queue = context.Queue()
            process = context.Process(target=work, args=(queue,))
            process.start()
            assert "Trigger" not in queue.get(), "the hook waits for torch in a helper process"
            process.join()
            block.close()
            block.unlink()
        """,
    )

    done = record(sys.executable, path, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert len(run_json(tmp_path)["processes"]) == 1


@pytest.mark.parametrize(
    "line",
    [
        "python -c 'from multiprocessing.resource_tracker import main;main(5)'",
        "python -E -X dev -c 'from multiprocessing.spawn import spawn_main; main()' --multiprocessing-fork",
        "python -c 'from multiprocessing.forkserver import main; main(1, 2)'",
        "python -m joblib.externals.loky.backend.popen_loky_posix --process-name x",
        "python /env/bin/torchrun --nproc-per-node 2 train.py",
        "python -um torch.distributed.run train.py",
        "python -mtorch.distributed.launch train.py",
        "python /env/bin/accelerate launch train.py",
        "python -m gpumon report",
        "python /env/bin/gpumon run -- python train.py",
    ],
)
def test_launchers_and_helpers_are_known_by_their_command_line(line):
    """They import torch, or may, and train nothing."""
    import shlex

    assert hook.trains_elsewhere(shlex.split(line))


@pytest.mark.parametrize(
    "line",
    [
        "python train.py --launcher torchrun",
        "python -m train -m torch.distributed.run",
        "python -c 'import torch'",
        "python",
        "python -",
        "python -m torch.distributed.runner",
        "python -X importtime -W ignore torch_train.py --multiprocessing",
    ],
)
def test_training_is_not_taken_for_a_helper(line):
    """Only what the interpreter itself runs counts, not the words behind it."""
    import shlex

    assert not hook.trains_elsewhere(shlex.split(line))


def test_the_next_sitecustomize_still_runs(tmp_path):
    """One that the user has on the path runs, knows itself by its name, and finds no trace of ours."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    script(theirs, "import sys; sys.theirs = __file__, list(sys.path)", "sitecustomize.py")
    code = "import sys, sitecustomize; assert sitecustomize.__file__ == sys.theirs[0]; print(*sys.theirs)"

    done = record(sys.executable, "-c", code, cwd=tmp_path, environment={"PYTHONPATH": str(theirs)})

    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().startswith(str(theirs))
    assert "_hook" not in done.stdout.decode()


def test_a_failing_sitecustomize_fails_as_without_gpumon(tmp_path):
    """Python says that it failed, and the command runs and is recorded."""
    script(tmp_path, "raise RuntimeError('theirs')", "sitecustomize.py")

    done = record(sys.executable, "-c", TRAINS, cwd=tmp_path, environment={"PYTHONPATH": str(tmp_path)})

    assert done.returncode == 0
    assert done.stderr.count("RuntimeError: theirs") == 2  # in gpumon's own Python, and in the command's
    assert len(run_json(tmp_path)["processes"]) == 1


def test_loaders_are_put_back(tmp_path):
    """A module that triggers the recording is as Python's own import system makes it."""
    code = "import gpumon, sys; print(type(gpumon.__loader__).__name__, type(gpumon.__spec__.loader).__name__)"

    assert record(sys.executable, "-c", code, cwd=tmp_path).stdout.split() == [b"SourceFileLoader"] * 2


def test_the_hook_reads_on_old_pythons():
    """Every Python of the machine may come upon it: no syntax newer than 3.6."""
    ast.parse(Path(hook.__file__).read_text(), feature_version=(3, 6))


# -- Where gpumon cannot get in -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "repaired"),
    [
        ("python -I train.py -I", "python train.py -I"),
        ("python3 -uE -X dev -m train", "python3 -u -X dev -m train"),
        ("/usr/bin/python3.11 -Sc pass", "/usr/bin/python3.11 -c pass"),
        ("python -W ignore -Is train.py", "python -W ignore -s train.py"),
    ],
)
def test_options_that_keep_gpumon_out_are_named_with_the_repair(command, repaired):
    """-I, -E and -S: the line says which, and gives the command without it."""
    assert run_module._obstacle(command.split()).endswith(f"-> gpumon run -- {repaired}")


@pytest.mark.parametrize("command", ["python train.py -I", "python -c -I", "python -X -E train.py", "sh -E", "python"])
def test_options_of_the_script_keep_nothing_out(command):
    """Only the interpreter's own options count."""
    assert run_module._obstacle(command.split()) is None


def test_isolated_python_still_runs(tmp_path):
    """One line at the start, one at the end, and the command's own result."""
    done = record(sys.executable, "-I", "-c", "print('trained'); exit(5)", cwd=tmp_path)

    assert (done.stdout, done.returncode) == (b"trained\n", 5)
    assert "gpumon: not recorded: -I keeps gpumon out of this interpreter -> gpumon run -- " in done.stderr
    assert "gpumon: nothing was recorded: -I keeps gpumon out" in done.stderr


def test_console_script_with_isolated_python_is_named_too(tmp_path):
    """The options may stand in the #! line of a console script."""
    tool = script(tmp_path, f"#!{sys.executable} -I\nprint('trained')\n", "tool")
    tool.chmod(0o755)

    done = record("./tool", cwd=tmp_path)

    assert done.stdout == b"trained\n"
    assert f"-I keeps gpumon out of this interpreter -> gpumon run -- {sys.executable} ./tool" in done.stderr


def test_environment_without_gpumon_is_named_with_the_repair(tmp_path):
    """Another environment trains on: one line names its Python and how to install gpumon there, once."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = tmp_path / "bare" / "bin" / "python"
    script(tmp_path, "print('imported')", "torch.py")  # this environment has no torch of its own
    path = script(tmp_path, "import subprocess, sys, torch; subprocess.run([sys.executable, '-c', 'import torch'])")
    environment = {"GPUMON_STRICT": "", "PYTHONPATH": str(tmp_path)}

    done = record(python, path, cwd=tmp_path, environment=environment)

    assert (done.returncode, done.stdout) == (0, b"imported\nimported\n")
    repair = f"{python} -m pip install opentelemetry-instrumentation-gpumon"
    said = [line for line in done.stderr.splitlines() if line.startswith("gpumon: not recorded: ")]
    assert len(said) == 1 and said[0].endswith(repair)
    assert "Traceback" not in done.stderr
    assert run_json(tmp_path)["not_recorded"] == [said[0].removeprefix("gpumon: not recorded: ")]


@pytest.mark.parametrize(
    ("variable", "value"),
    [("GPUMON_EXPORT", "none"), ("OTEL_SDK_DISABLED", "true"), ("OTEL_METRICS_EXPORTER", "none")],
)
def test_a_setting_that_keeps_everything_out_is_named(tmp_path, variable, value):
    """The user's own variables keep their meaning, and the line says which one it was."""
    done = record("true", cwd=tmp_path, environment={variable: value})

    assert f"gpumon: nothing was recorded: {variable}={value} -> unset {variable}\n" in done.stderr


# -- The recording ------------------------------------------------------------------------------------


def test_default_folder_is_named_after_start_and_script(tmp_path):
    """Without --out: gpumon-runs/<start>-<service>-<short id>/, named in one line at the start."""
    done = record(sys.executable, "-c", "", "train.py", cwd=tmp_path, options=["--no-report"])

    (folder,) = (tmp_path / "gpumon-runs").iterdir()
    assert re.fullmatch(r"\d{8}T\d{6}-python[\d.]*-[0-9a-f]{6}", folder.name)
    assert re.match(rf"gpumon: recording to gpumon-runs/{folder.name} \(devices: .* disks?\)\n", done.stderr)


@pytest.mark.parametrize(
    ("command", "service"),
    [
        ("python -u train.py", "train"),
        ("python3 -m pkg.train --x", "pkg.train"),
        ("torchrun --nproc-per-node 2 path/to/train.py --config a.py", "train"),
        ("python -m torch.distributed.run --standalone train.py", "train"),
        ("/opt/bin/finetune.sh big", "finetune"),
        ("python -c pass", "python"),
    ],
)
def test_run_is_called_after_what_trains(monkeypatch, command, service):
    """The script or module; a launcher's name only where nothing better is known."""
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)

    assert run_module.service_of(command.split()) == service


def test_service_name_of_the_environment_wins(monkeypatch):
    """OTEL_SERVICE_NAME keeps its meaning."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "vision")

    assert run_module.service_of(["python", "train.py"]) == "vision"


def test_a_recorded_run_is_never_overwritten(tmp_path):
    """A second run into the same folder is refused before the command starts."""
    assert record("true", cwd=tmp_path).returncode == 0

    done = record("touch", "started", cwd=tmp_path, environment={"GPUMON_STRICT": ""})

    assert done.returncode == 2
    assert done.stderr == "gpumon: out holds a recorded run already: name another folder\n"
    assert not (tmp_path / "started").exists()


def test_the_folder_that_the_environment_names(tmp_path):
    """A job that is started again gets a folder beside it; a run within a run does not take the outer one's."""
    command = [sys.executable, "-m", "gpumon", "run", "--no-report", "--", "true"]
    environment = {**os.environ, "GPUMON_RUN_DIR": str(tmp_path / "named")}
    several = [subprocess.Popen(command, cwd=tmp_path, env=environment) for _ in range(3)]
    assert [process.wait(30) for process in several] == [0, 0, 0]
    nested = [*command[:-1], *command]
    subprocess.run(nested, cwd=tmp_path, env={**environment, "GPUMON_RUN_DIR": str(tmp_path / "outer")}, check=True)

    assert sorted(path.parent.name for path in tmp_path.glob("*/run.json")) == ["named", "named-2", "named-3", "outer"]
    assert len(list(tmp_path.glob("gpumon-runs/*/run.json"))) == 1


@pytest.mark.timeout(120)
@pytest.mark.skipif(not shutil.which("torchrun", path=str(Path(sys.executable).parent)), reason="no torchrun")
def test_torchrun_records_its_ranks_and_not_its_agent(tmp_path):
    """Two ranks on one node: two processes in the run, ranks 0 and 1."""
    path = script(
        tmp_path,
        """
        import torch.distributed as dist
        dist.init_process_group("gloo")
        dist.barrier()
        dist.destroy_process_group()
        """,
    )
    torchrun = Path(sys.executable).with_name("torchrun")

    done = record(torchrun, "--standalone", "--nproc-per-node", "2", path, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert sorted(process["rank"] for process in run_json(tmp_path)["processes"]) == [0, 1]
