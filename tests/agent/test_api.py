"""The API: what is known of the node, as the OpenAPI document says, and nothing else."""

import http.client
import json
import socket
from importlib import resources

import jsonschema
import pytest

from agent.serving import Says, serving
from agent_process import short_folder
from gpumon import metrics as m
from gpumon.errors import NoDataError
from gpumon.metrics import Reading
from gpumon.system.agent_socket import ask, health
from gpumon.version import __version__
from otlp_receiver import eventually

DOCUMENT = json.loads(resources.files("gpumon.agent").joinpath("openapi.json").read_text())
GPU = {m.HW_ID: "GPU-aa", m.GPU_INDEX: 0}
SDA = {m.SYSTEM_DEVICE: "sda"}
READS = {**SDA, m.DISK_IO_DIRECTION: "read"}


def gpus():
    yield Reading(m.GPU_INFO, 1.0, {**GPU, m.HW_MODEL: "H200", m.GPU_MIG: "on"})
    yield Reading(m.GPU_INFO, 1.0, {m.HW_ID: "MIG-1", m.GPU_INDEX: 0, m.HW_PARENT: "GPU-aa", m.GPU_MIG: "instance"})
    yield Reading(m.GPU_UTILIZATION, 0.25, {**GPU, m.HW_GPU_TASK: "general"})
    yield Reading(m.TEMPERATURE, 60, {m.HW_ID: "GPU-aa/core", m.HW_PARENT: "GPU-aa", m.GPU_INDEX: 0})
    for state in ("ok", "degraded", "failed"):
        yield Reading(m.STATUS, float(state == "degraded"), {**GPU, m.HW_TYPE: "gpu", m.HW_STATE: state})
    lost = {m.HW_ID: "GPU-bb", m.GPU_INDEX: 1}
    yield Reading(m.STATUS, 1.0, {**lost, m.HW_TYPE: "gpu", m.HW_STATE: "failed"})
    yield Reading(m.COLLECTOR_UP, 0.0, {m.HW_ID: "GPU-bb", m.REASON: "lost"})


class Disks:
    """Each read takes 10 ms, and there is one more at every look."""

    interval_s = 0.05
    may_block = False

    def __init__(self):
        self.reads = 1000

    def collect(self):
        self.reads += 1
        yield Reading(m.DISK_OPERATIONS, self.reads, READS)
        yield Reading(m.DISK_AWAIT, self.reads * 0.01, READS, per=self.reads)
        yield Reading(m.DISK_AWAIT, 7.0, {**SDA, m.DISK_IO_DIRECTION: "write"}, per=70)
        yield Reading(m.DISK_INFO, 1.0, {**SDA, m.HW_SERIAL_NUMBER: "ZA1", m.DISK_TYPE: "HDD"})
        yield Reading(m.DISK_INFO, 1.0, {m.SYSTEM_DEVICE: "dm-0", m.DISK_PARENTS: "sda,sdb"})


def drives():
    yield Reading(m.SMART_INFO, 1.0, {m.HW_ID: "ZA1", m.SYSTEM_DEVICE: "sda,sdc", m.HW_MODEL: "ST8000"})
    yield Reading(m.STATUS, 1.0, {m.HW_ID: "ZA1", m.HW_TYPE: "physical_disk", m.HW_STATE: "predicted_failure"})
    yield Reading(m.PHYSICAL_DISK_SMART, 304, {m.HW_ID: "ZA1", m.SMART_ATTRIBUTE: "Reallocated_Sector_Ct"})
    yield Reading(m.COLLECTOR_UP, 0.0, {m.HW_ID: "/dev/sdz", m.REASON: "SMART: permission denied"})


def nothing_here():
    raise NoDataError("no such thing")
    yield


@pytest.fixture
def address():
    with short_folder() as folder:
        collectors = {
            "gpu": Says(gpus),
            "disk": Disks(),
            "smart": Says(drives),
            "pressure": Says(nothing_here),
        }
        with serving(folder / "agent.sock", collectors, exports=True):
            path = folder / "agent.sock"
            eventually(lambda: None not in [each["up"] for each in health(path)["collectors"]])
            yield path


def raw(address, method, target):
    """(status, headers, body) of any request."""
    connection = http.client.HTTPConnection("localhost", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(5)
    connection.sock.connect(str(address))
    connection.request(method, target)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def conforms(answer, path, status="200"):
    content = DOCUMENT["paths"][path]["get"]["responses"][status]
    if "$ref" in content:
        content = DOCUMENT["components"]["responses"][content["$ref"].rpartition("/")[2]]
    schema = next(iter(content["content"].values()))["schema"]
    jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(answer)
    return answer


def test_health(address):
    """Version, uptime, which collectors work and why not, what an OTLP receiver gets from here."""
    first = conforms(health(address), "/v1/health")
    later = eventually(lambda: (now := health(address))["uptime_s"] > first["uptime_s"] >= 0 and now)

    assert first["version"] == __version__
    assert first["instance"] == later["instance"]
    assert {each["name"]: each for each in first["collectors"]}["pressure"] == {
        "name": "pressure",
        "up": False,
        "reason": "no such thing",
    }
    assert set(first["exports"]) == {"gpu", "disk", "smart"}


def test_readings_have_all_that_a_client_needs_for_windows_of_its_own(address):
    """A counter is cumulative; a mean comes with its two terms; a state is the latest value."""
    eventually(lambda: of(ask("/v1/readings", address), m.DISK_OPERATIONS)["value"] > 1010)
    readings = conforms(ask("/v1/readings", address), "/v1/readings")

    assert of(readings, m.DISK_AWAIT, "read")["value"] == pytest.approx(0.01)
    terms = of(readings, m.DISK_AWAIT, "read")["terms"]
    assert terms["value"] == pytest.approx(terms["per"] * 0.01) and terms["is_ratio"]
    assert of(readings, m.GPU_UTILIZATION)["value"] == 0.25
    terms = of(readings, m.GPU_UTILIZATION)["terms"]
    assert terms["value"] == terms["per"] * 0.25 and not terms["is_ratio"]
    assert "terms" not in of(readings, m.DISK_OPERATIONS)
    assert of(readings, m.PHYSICAL_DISK_SMART)["value"] == 304 and "terms" not in of(readings, m.PHYSICAL_DISK_SMART)
    assert all(0 <= each["age_s"] < 2 for each in readings["readings"])
    assert of(readings, m.DISK_OPERATIONS)["unit"] == "{operation}"


def of(answer, metric, *values):
    (found,) = [
        each
        for each in answer["readings"]
        if each["metric"] == metric.name and set(values) <= set(each["attributes"].values())
    ]
    return found


def test_a_mean_over_nothing_is_absent(address):
    """No writes since the reading before: no await, rather than 0."""
    writes = of(ask("/v1/readings", address), m.DISK_AWAIT, "write")

    assert "value" not in writes
    assert writes["terms"] == {"value": 7.0, "per": 70, "is_ratio": True}


def test_readings_of_some_collectors_or_devices(address):
    """By collector, and by a GPU's UUID, a disk's name or a serial number; several widen it."""

    def told(**parameters):
        pairs = [(key, value) for key, values in parameters.items() for value in values]
        answer = conforms(ask("/v1/readings", address, parameters=pairs), "/v1/readings")
        return {each["metric"] for each in answer["readings"]}, [each["name"] for each in answer["collectors"]]

    disk = {"system.disk.operations", "gpumon.disk.await", "gpumon.disk.info"}
    assert told(collector=["disk"]) == (disk, ["disk"])
    assert told(device=["GPU-aa"])[0] == {"gpumon.gpu.info", "hw.gpu.utilization", "hw.temperature", "hw.status"}
    assert told(device=["sda"])[0] == disk | {"gpumon.smart.info"}
    assert told(device=["sda"], collector=["smart", "gpu"])[0] == {"gpumon.smart.info"}
    assert "hw.physical_disk.smart" in told(device=["ZA1"])[0]
    assert told(collector=["nonsense"]) == (set(), [])


def test_devices(address):
    """GPUs with their instances, disks with what is below them, drives with their state; the broken ones too."""
    devices = conforms(ask("/v1/devices", address), "/v1/devices")

    assert devices["gpus"] == [
        {"id": "GPU-aa", "index": 0, "instances": ["MIG-1"], "model": "H200", "mig": "on", "state": "degraded"},
        {"id": "GPU-bb", "index": 1, "instances": [], "state": "failed", "reason": "lost"},
    ]
    assert devices["disks"] == [
        {"device": "sda", "serial_number": "ZA1", "type": "HDD", "parents": []},
        {"device": "dm-0", "parents": ["sda", "sdb"]},
    ]
    assert devices["smart"] == [
        {"id": "ZA1", "devices": ["sda", "sdc"], "model": "ST8000", "state": "predicted_failure"},
        {"id": "/dev/sdz", "devices": [], "reason": "SMART: permission denied"},
    ]
    assert devices["paths"] == []


@pytest.mark.parametrize(
    ("target", "status", "says"),
    [
        ("/v1/nothing", 404, "/v1/readings"),
        ("/", 404, "/openapi.json"),
        ("/v1/health?x=1", 400, "there are none here"),
        ("/v1/readings?colector=disk", 400, "collector, device"),
        ("/v1/readings?device=", 400, "1 to 256 characters"),
        ("/v1/devices?path=relative", 400, "begins with /"),
        ("/v1/devices?path=%2Fa%00b", 400, "NUL"),
        ("/v1/devices?" + "&".join(["path=/"] * 17), 400, "path at most 16 times"),
        ("/v1/readings?" + "&".join(["device=a"] * 65), 400, "at most 64"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(address, target, status, says):
    """As problem details (RFC 9457), which a person can read."""
    got, headers, body = raw(address, "GET", target)
    problem = json.loads(body)

    assert got == problem["status"] == status
    assert headers["Content-Type"] == "application/problem+json"
    assert says in problem["detail"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "PATCH"])
def test_nothing_can_be_changed(address, method):
    """Only GET."""
    status, headers, body = raw(address, method, "/v1/readings")

    assert (status, headers["Allow"]) == (405, "GET")
    assert bool(body) == (method != "HEAD")


def test_the_document_describes_itself(address):
    """The OpenAPI document is served, and has every address."""
    status, headers, body = raw(address, "GET", "/openapi.json")

    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == DOCUMENT
    assert set(DOCUMENT["paths"]) == {"/v1/health", "/v1/readings", "/v1/devices", "/openapi.json"}


def test_a_client_that_is_refused_hears_why(address):
    """The client's error has the agent's words."""
    with pytest.raises(NoDataError, match=r"refuses /v1/devices: a path begins with /"):
        ask("/v1/devices", address, parameters=[("path", "x")])


def test_what_clients_leave_unread_is_bounded():
    """Answers of a megabyte, each another one, that nobody reads: after some, whoever asks is told to come again."""

    def many():
        for number in range(6000):
            yield Reading(m.DISK_IN_FLIGHT, 1.0, {m.SYSTEM_DEVICE: f"sd{number}"})

    with short_folder() as folder, serving(folder / "agent.sock", {"disk": Says(many, 60.0)}):
        path = folder / "agent.sock"
        eventually(lambda: len(ask("/v1/readings", path, timeout_s=10)["readings"]) == 6000)
        lazy = []
        with pytest.raises(NoDataError, match="too many unread answers"):
            for number in range(30):
                client = socket.socket(socket.AF_UNIX)
                client.settimeout(5)
                client.connect(str(path))
                client.sendall(f"GET /v1/readings?collector=disk&collector=n{number} HTTP/1.1\r\n\r\n".encode())
                lazy.append(client)
                ask("/v1/readings", path, parameters=[("collector", "disk"), ("collector", f"m{number}")], timeout_s=10)
        for client in lazy:
            client.close()
        eventually(lambda: len(readable(path)) == 6000)


def readable(path):
    try:
        return ask("/v1/readings", path, timeout_s=10)["readings"]
    except NoDataError:
        return []
