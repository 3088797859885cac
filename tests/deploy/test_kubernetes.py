"""The DaemonSet and the PodMonitor, by the schemas of Kubernetes and of the Prometheus operator."""

import ipaddress
import os
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from deploy.deployments import CAPABILITIES, DAEMONSET, PODMONITOR, daemonset, podmonitor
from peers import PROMTOOL, needs_promtool

OLDEST, NEWEST = "1.29", kubernetes_validate.latest_version()


def container():
    return daemonset()["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_takes_the_objects(version):
    """Strictly: no field that Kubernetes does not know."""
    for one in yaml.safe_load_all(DAEMONSET.read_text()):
        kubernetes_validate.validate(one, version, strict=True)


def test_the_operator_takes_the_pod_monitor():
    """Its own types; and nothing is in the file that they do not have."""
    from cloudcoil.models.prometheus_operator import v1

    told = podmonitor()
    model = v1.PodMonitor.model_validate(told)

    assert model.model_dump(by_alias=True, exclude_unset=True, mode="json") == told


def test_the_pod_monitor_finds_the_agents():
    """Its selector fits the pods' labels, and its port is one of theirs."""
    template = daemonset()["DaemonSet"]["spec"]["template"]
    spec = podmonitor()["spec"]

    assert spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert podmonitor()["metadata"]["namespace"] == daemonset()["DaemonSet"]["metadata"]["namespace"]
    assert {one["port"] for one in spec["podMetricsEndpoints"]} == {one["name"] for one in container()["ports"]}


def test_a_privileged_agent_gives_up_all_that_it_does_not_need():
    """`privileged` is for /dev; the command leaves five capabilities, read from what it really has then."""
    command = container()["command"]
    assert container()["securityContext"]["privileged"] is True
    assert command[-1] == "gpumon"

    if shutil.which("setpriv") is None:
        pytest.skip("needs apt-get install util-linux")
    if os.geteuid() != 0:
        pytest.skip("needs root: capabilities to give up")
    done = subprocess.run([*command[:-1], "cat", "/proc/self/status"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    status = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    numbers = {"dac_read_search": 2, "sys_rawio": 17, "sys_ptrace": 19, "sys_admin": 21, "syslog": 34}
    wanted = sum(1 << numbers[name] for name in CAPABILITIES)
    for kind in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[kind], 16) & ~wanted == 0
    assert (int(status["CapInh"], 16), status["NoNewPrivs"]) == (0, "1")


def test_it_reads_what_the_collector_of_holders_reads():
    """Default paths of the collector, mounted from the node under the same paths."""
    from gpumon.system import pod_resources

    spec = daemonset()["DaemonSet"]["spec"]["template"]["spec"]
    mounted = {one["mountPath"]: one for one in container()["volumeMounts"]}
    of_node = {one["name"]: one.get("hostPath", {}).get("path") for one in spec["volumes"]}

    assert spec["hostPID"] is True
    for path in (pod_resources.SOCKET.rpartition("/")[0], "/var/log/pods", "/run/udev", "/etc/machine-id"):
        assert mounted[path]["readOnly"] is True
        assert of_node[mounted[path]["name"]] == path


def test_metrics_are_served_where_probes_and_prometheus_look():
    """The port of the arguments is the pod's; HOST_IP is set before it is used, IPv6 too."""
    from gpumon.agent.service import _address

    place = container()["args"][container()["args"].index("--prometheus") + 1]
    variables = {one["name"]: one for one in container()["env"]}
    assert variables["HOST_IP"]["valueFrom"] == {"fieldRef": {"fieldPath": "status.hostIP"}}
    for address in ("192.0.2.7", "2001:db8::7"):
        host, port = _address(place.replace("$(HOST_IP)", address))
        assert ipaddress.ip_address(host) == ipaddress.ip_address(address)
        assert port == container()["ports"][0]["containerPort"]


SERIES = """
  - series: gpumon_device_holder_info{node="n1", hw_id="GPU-0", k8s_pod_name="a"}
    values: 1x60
  - series: gpumon_device_holder_info{node="n1", hw_id="GPU-0", k8s_pod_name="b"}
    values: 1x60
  - series: gpumon_device_holder_info{node="n1", hw_id="GPU-1", k8s_pod_name="c"}
    values: 1x60
  - series: gpumon_device_holder_info{node="n1", system_device="sda", k8s_pod_name="c"}
    values: 1x60
  - series: hw_gpu_utilization{node="n1", hw_id="GPU-0", hw_gpu_task="general", gpumon_gpu_index="0"}
    values: 0.5x60
  - series: hw_gpu_utilization{node="n1", hw_id="GPU-1", hw_gpu_task="general", gpumon_gpu_index="1"}
    values: 0+0x60
  - series: hw_gpu_utilization{node="n2", hw_id="GPU-9", hw_gpu_task="general", gpumon_gpu_index="0"}
    values: 0.9x60
"""


@needs_promtool
def test_the_queries_of_the_pod_monitors_comment_join(tmp_path):
    """Prometheus itself evaluates them: two pods share a GPU, one holds an idle one, one GPU is nobody's."""
    load, idle = re.findall(r"^#   (gpumon_.*)$", PODMONITOR.read_text(), re.MULTILINE)

    def holder(query, pod, gpu, value):
        name = "gpumon_device_holder_info" if query is idle else ""
        return {"labels": f'{name}{{node="n1", hw_id="{gpu}", k8s_pod_name="{pod}"}}', "value": value}

    expected = {
        load: [holder(load, "a", "GPU-0", 0.5), holder(load, "b", "GPU-0", 0.5), holder(load, "c", "GPU-1", 0)],
        idle: [holder(idle, "c", "GPU-1", 1)],
    }
    tests = {
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": yaml.safe_load(SERIES),
                "promql_expr_test": [
                    {"expr": query, "eval_time": "45m", "exp_samples": samples} for query, samples in expected.items()
                ],
            }
        ],
    }
    (tmp_path / "join.yaml").write_text(yaml.safe_dump(tests))
    done = subprocess.run([PROMTOOL, "test", "rules", "join.yaml"], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
