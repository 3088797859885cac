"""How well a disk is: what each sign means, and that nothing else does."""

import itertools

import pytest

from gpumon.rules.disk_health import CABLE, COUNTER_WORDS, FAILING, STATES, WEARING, Vitals, conditions, state_of


def rules(vitals):
    return {(each.rule, each.severity) for each in conditions(vitals)}


def text(vitals):
    return "; ".join(each.text for each in conditions(vitals))


def test_a_disk_with_nothing_wrong_is_well():
    """Half of its writes used, a cable that once was bad, counters at zero."""
    vitals = Vitals(
        used=0.51,
        spare=0.93,
        spare_threshold=0.10,
        counters={**dict.fromkeys(COUNTER_WORDS, 0), "link": 3_118_119},
        growth=dict.fromkeys(COUNTER_WORDS, 0),
    )

    assert conditions(vitals) == conditions(Vitals()) == []
    assert state_of(vitals) == state_of(Vitals()) == "ok"


@pytest.mark.parametrize(
    ("counter", "few", "many"),
    [
        ("reallocated", 99, 100),
        ("uncorrected", 9, 10),
        ("pending", 9, 10),
        ("offline_uncorrectable", 9, 10),
        ("media", None, 1),
    ],
)
def test_counts(counter, few, many):
    """A few old errors are a flaw, many a failure to come; one new one is that at once."""
    assert rules(Vitals(counters={counter: many})) == {(FAILING, "critical")}
    assert state_of(Vitals(counters={counter: many})) == "predicted_failure"
    if few is not None:
        assert rules(Vitals(counters={counter: few})) == {(WEARING, "warning")}
        assert state_of(Vitals(counters={counter: few})) == "degraded"
        assert rules(Vitals(counters={counter: few}, growth={counter: 1})) == {(FAILING, "critical")}


def test_a_count_that_passed_is_more_than_passed():
    """22144 reallocated sectors of a disk whose own check says PASSED."""
    assert state_of(Vitals(has_failed=False, counters={"reallocated": 22144})) == "predicted_failure"


def test_errors_of_the_link_are_the_cables():
    """By their growth alone, which says nothing of the disk."""
    assert rules(Vitals(counters={"link": 12}, growth={"link": 3})) == {(CABLE, "warning")}
    assert state_of(Vitals(counters={"link": 12}, growth={"link": 3})) == "degraded"


def test_its_own_judgement_is_a_failure():
    assert state_of(Vitals(has_failed=True)) == "failed"
    assert rules(Vitals(has_failed=True)) == {(FAILING, "critical")}
    assert text(Vitals(has_failed=True, why_failed="it burns")) == "it burns"


@pytest.mark.parametrize(
    ("bits", "state", "found"),
    [
        (0x01, "predicted_failure", {(FAILING, "critical")}),
        (0x02, "degraded", {(WEARING, "warning")}),
        (0x04, "predicted_failure", {(FAILING, "critical")}),
        (0x08, "predicted_failure", {(FAILING, "critical")}),
        (0x10, "predicted_failure", {(FAILING, "critical")}),
        (0x20, "predicted_failure", {(FAILING, "critical")}),
        (0x06, "predicted_failure", {(FAILING, "critical"), (WEARING, "warning")}),
    ],
)
def test_nvmes_warning_bit_by_bit(bits, state, found):
    """Heat is a warning of its speed, all others of its end."""
    assert state_of(Vitals(critical_warning=bits)) == state
    assert rules(Vitals(critical_warning=bits)) == found


@pytest.mark.parametrize(
    ("used", "found"),
    [
        (0.79, set()),
        (0.80, {(WEARING, "warning")}),
        (0.99, {(WEARING, "warning")}),
        (1.0, {(WEARING, "critical")}),
        (2.55, {(WEARING, "critical")}),
    ],
)
def test_wear(used, found):
    """From 80 % a warning, from 100 % critical; worn out is not failing."""
    assert rules(Vitals(used=used)) == found
    assert state_of(Vitals(used=used)) == ("degraded" if found else "ok")


def test_spare_blocks_below_their_limit():
    """Said once, by the disk or by the numbers."""
    low = Vitals(spare=0.05, spare_threshold=0.10)

    assert text(low) == "5% of its spare blocks are left, below the 10% limit"
    assert len(conditions(Vitals(spare=0.05, spare_threshold=0.10, critical_warning=1))) == 1
    for fine in (
        Vitals(spare=0.10, spare_threshold=0.10),
        Vitals(spare=0.0, spare_threshold=0.0),
        Vitals(spare=0.05),
        Vitals(spare_threshold=0.10),
    ):
        assert conditions(fine) == []


def test_thresholds_that_were_passed():
    """Now it foretells failure, before it is a flaw."""
    assert rules(Vitals(failing=["End-to-End_Error"])) == {(FAILING, "critical")}
    assert rules(Vitals(failed_before=["Spin_Retry_Count"])) == {(WEARING, "warning")}
    assert rules(Vitals(self_test_failed=True)) == {(WEARING, "warning")}


def test_io_errors_of_the_kernel():
    assert rules(Vitals(io_errors=2)) == {(FAILING, "critical")}
    assert text(Vitals(io_errors=2)) == "2 I/O errors seen by the kernel"


def test_the_worst_comes_first():
    vitals = Vitals(used=0.9, self_test_failed=True, counters={"pending": 1, "reallocated": 304}, growth={"link": 1})

    assert conditions(vitals)[0].rule == FAILING
    assert conditions(vitals)[0].text == "304 reallocated sectors"


@pytest.mark.parametrize(
    ("counters", "said"),
    [
        ({"reallocated": 1}, "1 reallocated sector"),
        ({"reallocated": 2}, "2 reallocated sectors"),
        ({"uncorrected": 1}, "1 uncorrectable error reported"),
        ({"media": 1}, "1 media error"),
        ({"offline_uncorrectable": 1}, "1 offline uncorrectable sector"),
    ],
)
def test_words(counters, said):
    assert text(Vitals(counters=counters)) == said


def test_states_follow_from_conditions_alone():
    """Whatever comes together: failing conditions are never less than predicted_failure, none is always ok."""
    signs = [
        {},
        {"critical_warning": 2},
        {"critical_warning": 4},
        {"used": 0.9},
        {"counters": {"pending": 1}},
        {"counters": {"pending": 20}},
        {"growth": {"link": 1}},
        {"failing": ["A"]},
        {"has_failed": True},
    ]
    for one, other in itertools.product(signs, repeat=2):
        vitals = Vitals(**{**one, **other})
        found = conditions(vitals)
        state = state_of(vitals)
        assert state in STATES
        assert (state == "ok") == (found == [])
        assert (state in ("predicted_failure", "failed")) == any(each.rule == FAILING for each in found)
        assert all(each.text for each in found)
