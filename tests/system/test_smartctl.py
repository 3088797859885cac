"""Running smartctl: one process per question, bounded in time, output and number."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

import smart_documents as documents
from fake_smartctl import FakeSmartctl
from faketree import Machine
from gpumon.errors import CollectorError, NoDataError
from gpumon.system import smart, smartctl
from gpumon.system.smartctl import Target
from otlp_receiver import eventually

SDA = Target("/dev/sda")
QUICK_S = 0.5


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The smartctl that is found."""
    made = FakeSmartctl(tmp_path)
    monkeypatch.setenv("GPUMON_SMARTCTL", str(made.command))
    yield made
    made.kill_all()


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A smartctl that knows no JSON."""
    made = FakeSmartctl(tmp_path, version="6.6")
    monkeypatch.setenv("GPUMON_SMARTCTL", str(made.command))
    yield made
    made.kill_all()


def test_it_is_found_where_administrators_have_it(tmp_path):
    """On PATH, in the system's folders, or by name; a command may have words before it."""
    made = FakeSmartctl(tmp_path)

    assert smartctl.find({"PATH": str(made.command.parent)}) == [str(made.command)]
    assert smartctl.find({"PATH": "", "GPUMON_SMARTCTL": f"env 'A=b c' {made.command}"}) == [
        "env",
        "A=b c",
        str(made.command),
    ]


@pytest.mark.parametrize("named", ["/nowhere/smartctl", "an 'open quote", "  "])
def test_one_that_is_not_there_is_no_data(named):
    """With the name that was asked for."""
    with pytest.raises(NoDataError, match="GPUMON_SMARTCTL"):
        smartctl.find({"GPUMON_SMARTCTL": named})


def test_none_at_all_says_what_to_install(monkeypatch):
    monkeypatch.setattr(smartctl, "_FOLDERS", ())
    monkeypatch.setenv("PATH", "/nowhere")

    for ask in (smartctl.scan, smartctl.version, lambda: smartctl.read(SDA)):
        with pytest.raises(NoDataError, match="install smartmontools"):
            ask()


def test_words_before_the_command_are_kept(fake, monkeypatch):
    """Of `sudo -n smartctl` the whole command is run."""
    fake.answer("/dev/sda", documents.hdd())
    monkeypatch.setenv("GPUMON_SMARTCTL", f"env SAID=so {fake.command}")

    assert smartctl.read(SDA)["serial_number"] == "Z1F0TEST"


def test_its_version(fake, monkeypatch):
    """Something else is not smartctl."""
    assert smartctl.version() == (7, 3)
    monkeypatch.setenv("GPUMON_SMARTCTL", "/bin/true")
    with pytest.raises(CollectorError, match="/bin/true is not smartctl"):
        smartctl.version()


def test_a_scan_lists_disks_by_path_and_kind(fake):
    """SATA disks are listed as "scsi": their kind is found out when they are asked."""
    for path, kind in (("/dev/sda", "scsi"), ("/dev/nvme0", "nvme"), ("/dev/bus/0", "megaraid,0")):
        fake.answer(path, documents.hdd(), kind)
    fake.answer("/dev/bus/0", documents.hdd(), "megaraid,1")

    assert smartctl.scan() == [
        Target("/dev/sda", "auto"),
        Target("/dev/nvme0", "nvme"),
        Target("/dev/bus/0", "megaraid,0"),
        Target("/dev/bus/0", "megaraid,1"),
    ]
    assert [target.name for target in smartctl.scan()][2:] == ["/dev/bus/0 (megaraid,0)", "/dev/bus/0 (megaraid,1)"]
    assert "--scan" in fake.calls()[0].arguments
    assert "--scan-open" not in fake.calls()[0].arguments


def test_no_disk_is_no_failure(fake):
    """An answer without a list."""
    assert smartctl.scan() == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 1", "no JSON: nothing"),
        ("echo 'sudo: a password is required' >&2; exit 1", "a password is required"),
        ("kill -SEGV $$", "no JSON: signal 11"),
        ('printf \'{"devices": [{"name":\'', "no JSON"),
        ("exec sleep 1000", "no answer within 0.5 s"),
        (
            'printf \'{"smartctl":{"exit_status":1,"messages":[{"string":"no bus","severity":"error"}]}}\'; exit 1',
            "no bus",
        ),
    ],
)
def test_a_scan_that_fails_is_not_an_empty_list(fake, script, said):
    """Else the disks would be forgotten."""
    fake.scan(script)

    with pytest.raises(CollectorError, match=said):
        smartctl.scan(QUICK_S)


def test_damaged_rows_of_a_scan_are_left_out(fake):
    document = documents.header() | {"devices": [None, {"name": 3}, {"type": "nvme"}, {"name": "/dev/sda"}, "x"]}
    fake.scan(f"cat <<'END'\n{json.dumps(document)}\nEND")

    assert smartctl.scan() == [SDA]


def test_a_disk_answers_in_one_run(fake):
    """With everything that is wanted; the exit status is no judge."""
    fake.answer("/dev/sda", documents.hdd(exit_status=216))

    assert smartctl.read(SDA)["smart_status"] == {"passed": True}
    (call,) = fake.calls("/dev/sda")
    assert {"--json=co", "--health", "--attributes", "--nocheck=standby,3", "auto"} <= set(call.arguments)


def test_what_cannot_sleep_is_not_asked_whether_it_does(fake):
    """Firmware of many SSDs says "asleep" for ever."""
    fake.answer("/dev/sda", documents.ssd())
    smartctl.read(SDA, leave_asleep=False, ssd_log=True)
    arguments = fake.calls("/dev/sda")[-1].arguments

    assert not any("nocheck" in argument for argument in arguments)
    assert "--log=ssd" in arguments


def test_a_disk_in_standby_is_left_there(fake):
    fake.asleep("/dev/sda", documents.hdd())

    assert smart.is_asleep(smartctl.read(SDA))
    assert not fake.woken("/dev/sda")
    assert len(fake.calls("/dev/sda")) == 1


def test_sleep_is_what_smartctl_says_of_disks_that_do_not_answer(fake):
    """Of one that died, or behind a bridge that does not pass the question on: only reading it tells."""
    fake.asleep("/dev/sda", documents.hdd(), mode="SLEEP")
    fake.asleep("/dev/sdb", documents.unanswered_sata("Input/output error"), mode="SLEEP")
    fake.answer("/dev/sdc", documents.standby("SLEEP"))

    assert smart.has_health(smartctl.read(SDA))
    assert smart.problem_of(smartctl.read(Target("/dev/sdb"))) == "Read Device Identity failed: Input/output error"
    assert smart.is_asleep(smartctl.read(Target("/dev/sdc")))


def test_lines_before_the_document_are_skipped(fake):
    """As releases up to 7.2 print them for some SAS disks; what follows it as well."""
    fake.answer(
        "/dev/sda", json.dumps(documents.sas()) + "\nlater", before="  Pending defect count:0 Pending Defects\n"
    )

    assert smartctl.read(SDA)["serial_number"] == "SASTEST1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no JSON: nothing"),
        ("\x01 not { json", "no JSON: [?] not { json"),
        ('{"smartctl":', "no JSON"),
        ("[1, 2]", "no JSON"),
        ("{" * 100_000, "no JSON"),
        ('{"a":' * 100_000, "no JSON"),
        ('{"a": ' + "9" * 10_000 + "}", "no JSON"),
        ("x" * 1000, "no JSON: x{80}$"),
    ],
)
def test_garbage_is_no_answer(fake, tmp_path, text, said):
    """What it said, as far as it can be printed."""
    file = tmp_path / "garbage"
    file.write_text(text)
    fake.print_file("/dev/sda", file)

    with pytest.raises(CollectorError, match=said):
        smartctl.read(SDA)


def test_bytes_that_are_no_text_are_no_answer(fake):
    fake.runs("/dev/sda", r"printf '\377\376\000\200'")

    with pytest.raises(CollectorError, match="no JSON"):
        smartctl.read(SDA)


def test_the_exit_status_counts_where_the_document_has_none(fake):
    document = documents.standby()
    document["smartctl"] = "damaged"
    fake.answer("/dev/sda", document, status=3)

    assert smart.is_asleep(smartctl.read(SDA))


@pytest.mark.parametrize("stubborn", [False, True])
def test_one_that_hangs_is_killed_with_its_children(fake, stubborn):
    """SIGTERM is not enough for some; the time is kept."""
    fake.hang("/dev/sda", stubborn=stubborn)
    began = time.monotonic()

    with pytest.raises(smartctl.Hung, match=r"no answer within 0\.5 s") as raised:
        smartctl.read(SDA, timeout_s=QUICK_S)
    assert time.monotonic() - began < 3.0
    assert raised.value.process is None
    eventually(lambda: fake.processes() == [])


def test_one_that_closes_its_output_and_stays_is_killed(fake):
    fake.runs("/dev/sda", "exec sleep 1000 >&- 2>&-")

    with pytest.raises(smartctl.Hung, match="did not end"):
        smartctl.read(SDA, timeout_s=QUICK_S)
    eventually(lambda: fake.processes() == [])


def test_a_child_that_keeps_the_output_open_does_not_keep_us(fake):
    """The command itself has long ended."""
    fake.runs("/dev/sda", "sleep 1000 &\nexit 0")

    with pytest.raises(smartctl.Hung):
        smartctl.read(SDA, timeout_s=QUICK_S)
    eventually(lambda: fake.processes() == [])


def test_a_flood_is_cut_off(fake):
    """At once, not when the time is over."""
    fake.flood("/dev/sda")
    began = time.monotonic()

    with pytest.raises(CollectorError, match="more than 4 MiB"):
        smartctl.read(SDA, timeout_s=30.0)
    assert time.monotonic() - began < 15.0
    eventually(lambda: fake.processes() == [])


def test_one_that_dies_says_of_what(fake):
    fake.die("/dev/sda", by="BUS")

    with pytest.raises(CollectorError, match="signal 7"):
        smartctl.read(SDA)


def test_one_that_cannot_be_started_says_why(tmp_path, monkeypatch):
    broken = tmp_path / "smartctl"
    broken.write_text("#!/no/such/shell\n")
    broken.chmod(0o755)
    monkeypatch.setenv("GPUMON_SMARTCTL", str(broken))

    with pytest.raises(CollectorError, match="No such file"):
        smartctl.read(SDA)


def test_what_runs_can_be_ended(fake):
    """At the end of the process nothing is left behind."""
    fake.hang("/dev/sda", stubborn=True)
    failed = []

    def read():
        try:
            smartctl.read(SDA, timeout_s=60.0)
        except CollectorError as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    eventually(lambda: len(fake.processes()) == 2)
    smartctl.stop_all()
    thread.join(10.0)

    assert not thread.is_alive()
    assert len(failed) == 1
    eventually(lambda: fake.processes() == [])


# -- Releases without JSON ------------------------------------------------------------------------------


def test_a_release_without_json_is_read_by_its_text(old):
    """By pySMART; the result has the document's shape."""
    old.answer("/dev/sda", documents.text_of_ata(reallocated=304), "sat")
    old.answer("/dev/nvme0", documents.text_of_nvme(warning=4, used=91), "nvme")
    targets = smartctl.scan()
    ata, nvme = (smart.parse(smartctl.read(target)) for target in targets)

    assert targets == [Target("/dev/sda", "sat"), Target("/dev/nvme0", "nvme")]
    assert (ata.serial_number, ata.model, ata.protocol) == ("OLDTEST1", "ST4000TEST-1V4107", "ATA")
    assert (ata.passed, ata.temperature_c, ata.is_rotating) == (True, 31.0, True)
    assert ata.counters == {"reallocated": 304, "pending": 0, "link": 3}
    assert {value.name: value.value for value in ata.values}["Command_Timeout"] == 21
    assert (nvme.serial_number, nvme.protocol, nvme.passed) == ("OLDTEST2", "NVMe", False)
    assert (nvme.critical_warning, nvme.used, nvme.counters) == (4, 0.91, {"media": 7})
    assert nvme.temperature_c == 29.0


def test_an_old_release_reads_sas_disks_and_raid_controllers(old):
    """Their kinds go with the question: a bus has many disks."""
    old.answer("/dev/sdg", documents.text_of_sas(defects=56, read=3, write=4), "scsi")
    old.answer("/dev/bus/0", documents.text_of_ata("MR1", reallocated=387), "megaraid,1")
    sas, raid = (smart.parse(smartctl.read(target)) for target in smartctl.scan())

    assert (sas.serial_number, sas.protocol, sas.passed) == ("OLDTEST3", "SCSI", True)
    assert (sas.temperature_c, sas.counters) == (34.0, {"reallocated": 56, "uncorrected": 7})
    assert (raid.serial_number, raid.protocol, raid.counters["reallocated"]) == ("MR1", "ATA", 387)
    assert raid.size_bytes == 4_000_787_030_016


def test_a_text_that_cannot_be_read_is_no_answer(old):
    old.answer("/dev/nvme0", documents.text_of_nvme().replace("10,423", "1 0\xa0423"), "nvme")
    (target,) = smartctl.scan()

    with pytest.raises(CollectorError, match="pySMART cannot read"):
        smartctl.read(target)


def test_an_old_release_leaves_sleeping_disks_alone_too(old):
    old.runs(
        "/dev/sda",
        "case $* in *--nocheck=standby*) echo 'Device is in STANDBY mode, exit(2)'; exit 2;; esac; : >$here/woken",
        "sat",
    )
    (target,) = smartctl.scan()

    assert smartctl.version() == (6, 6)
    assert smart.is_asleep(smartctl.read(target))
    assert not list(old.command.parent.glob("woken*"))


def test_an_old_release_that_may_not_read_says_so(old):
    old.answer("/dev/sda", documents.TEXT_HEADER + "Smartctl open device: /dev/sda failed: Permission denied\n", "sat")
    (target,) = smartctl.scan()

    assert smart.problem_of(smartctl.read(target)) == "Permission denied"


def test_the_time_of_an_old_release_is_for_all_its_runs(old):
    """pySMART asks up to nine times, each of which may take a while."""
    old.hang("/dev/sda", "sat")
    old.answer("/dev/sdg", documents.text_of_sas(), "scsi", after_s=0.3)

    for target in smartctl.scan():
        began = time.monotonic()
        with pytest.raises(smartctl.Hung, match=r"0\.5 s"):
            smartctl.read(target, timeout_s=QUICK_S)
        assert time.monotonic() - began < 5.0
    eventually(lambda: old.processes() == [])


# -- What it does to the process ------------------------------------------------------------------------

STATE = """
import json, logging, os, sys
from gpumon.system import smartctl

class OfTheProgram(logging.Logger):
    pass

def state():
    levels = {number: logging.getLevelName(number) for number in range(0, 60)}
    return [dict(os.environ), logging.getLoggerClass().__name__, levels, logging.getLevelName("TRACE"),
            logging.getLogger().handlers, type(logging.getLogger(f"program.{len(seen)}")).__name__]

seen = []
logging.setLoggerClass(OfTheProgram)
if "named" in sys.argv:
    logging.addLevelName(5, "VERBOSE")
    logging.addLevelName(8, "TRACE")
seen.append(state())
for target in smartctl.scan():
    smartctl.read(target)
    smartctl.read(target)
seen.append(state())
import pySMART
print(json.dumps([seen[0] == seen[1], pySMART.smartctl.SMARTCTL.options, seen]))
"""


@pytest.mark.parametrize("release", ["7.3", "6.6"])
@pytest.mark.parametrize("language", [{}, {"LANG": "de_DE.UTF-8"}])
@pytest.mark.parametrize("named", [(), ("named",)])
def test_the_process_is_as_before(tmp_path, release, language, named):
    """pySMART's import sets LANG, the class of loggers and a level's name; its objects share a list of options."""
    fake = FakeSmartctl(tmp_path, release)
    text = documents.hdd() if release == "7.3" else documents.text_of_ata()
    fake.answer("/dev/sda", text, "sat")
    environment = {key: value for key, value in os.environ.items() if key != "LANG"}
    environment |= {"GPUMON_SMARTCTL": str(fake.command), **language}
    done = subprocess.run(
        [sys.executable, "-c", STATE, *named], env=environment, capture_output=True, text=True, check=True
    )
    is_same, options, states = json.loads(done.stdout)

    assert is_same, states
    assert options == []
    assert len(fake.calls("/dev/sda")) >= 2


# -- Which block devices are on a disk ------------------------------------------------------------------


def test_block_devices_of_a_disk(tmp_path):
    """SATA disks, NVMe controllers (with several paths too), RAID buses and SCSI's generic names."""
    machine = Machine(tmp_path)
    for name, number in (("sda", "8:0"), ("nvme0n1", "259:0"), ("nvme0n2", "259:1")):
        machine.disk(name, number)
    for path in ("class/nvme/nvme0/nvme0n1", "class/nvme/nvme0/nvme0n2", "class/nvme/nvme1/nvme0c1n1"):
        (tmp_path / "sys" / path).mkdir(parents=True)
    (tmp_path / "sys/class/nvme/nvme0/hwmon1").mkdir()
    (tmp_path / "sys/devices/host3/scsi_host/host3").mkdir(parents=True)
    for place in ("0:0/3:0:0:0/block/sdb", "2:1/3:2:1:0/block/sdc", "0:5/3:0:5:0/enclosure"):
        (tmp_path / "sys/devices/host3" / f"target3:{place}").mkdir(parents=True)
    (tmp_path / "sys/class/scsi_host").mkdir()
    (tmp_path / "sys/class/scsi_host/host3").symlink_to(tmp_path / "sys/devices/host3/scsi_host/host3")
    (tmp_path / "sys/class/scsi_generic/sg2/device/block/sdd").mkdir(parents=True)

    def of(path, kind="auto"):
        return smartctl.disks_of(Target(path, kind), tmp_path)

    assert of("/dev/sda") == ("sda",)
    assert of("/dev/nvme0") == ("nvme0n1", "nvme0n2")
    assert of("/dev/nvme1") == ("nvme0n1",)
    assert of("/dev/nvme0n1") == ("nvme0n1",)
    assert of("/dev/bus/3", "megaraid,1") == ("sdb", "sdc")
    assert of("/dev/sg2") == ("sdd",)
    assert of("/dev/sdx") == of("/dev/bus/9") == of("/dev/sg9") == ()
