"""Names in SQL and Python are those of the catalogue: a metric that is renamed fails here."""

import re
from pathlib import Path

import gpumon.analysis
import gpumon.rules
from gpumon import metrics as m

METRIC = re.compile(r"""['"]((?:gpumon|system|process|hw)\.[a-z_.]*[a-z_])['"]""")
SPAN_ATTRIBUTES = {
    "gpumon.step.number",
    "gpumon.epoch",
    "gpumon.batch.size",
    "gpumon.keep.reason",
    "gpumon.step.first_of_epoch",
    "gpumon.step.slow",
    "gpumon.window.disk.device",
    "gpumon.window.disk.await",
    "gpumon.window.disk.utilization",
    "gpumon.window.gpu.utilization",
    "gpumon.window.io.pressure",
}
RESOURCE_ATTRIBUTES = {"gpumon.node.id", "gpumon.run.id", "gpumon.rank", "process.pid"}
EVENTS = {"gpumon.gpu.xid"}
LATER = {"hw.physical_disk.smart", "hw.physical_disk.smart_attribute"}


def names():
    for package in (gpumon.analysis, gpumon.rules):
        folder = Path(package.__file__).parent
        for file in [*folder.rglob("*.sql"), *folder.rglob("*.py")]:
            for name in METRIC.findall(file.read_text()):
                yield file.name, name


def test_every_name_is_in_the_catalogue():
    """A metric, or an attribute of one."""
    attributes = {attribute for metric in m.CATALOGUE for attribute in metric.attributes}
    known = set(m.BY_NAME) | attributes | SPAN_ATTRIBUTES | RESOURCE_ATTRIBUTES | EVENTS | LATER
    unknown = {
        (file, name)
        for file, name in names()
        if name not in known and not any(other.startswith(name + ".") for other in known)
    }

    assert not unknown
    assert len(set(names())) > 60
