"""The header that says how busy a server is: what is written is read again, and nonsense is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbclient.load_report import HEADER, LoadReport

RIFS = st.integers(0, 10**6)
LATENCIES = st.none() | st.floats(0, 3600)


def test_the_header_is_the_one_of_orca() -> None:
    assert HEADER == "endpoint-load-metrics"
    assert str(LoadReport(3, 0.0123)) == "TEXT named_metrics.rif=3,named_metrics.latency=0.0123"
    assert str(LoadReport(3)) == "TEXT named_metrics.rif=3"


@given(RIFS, LATENCIES)
def test_what_is_written_is_read_again(rif: int, latency: float | None) -> None:
    report = LoadReport.parse(str(LoadReport(rif, latency)))
    assert report is not None
    assert report.rif == rif
    assert report.latency == (None if latency is None else pytest.approx(latency, rel=1e-5))


@given(RIFS, LATENCIES, st.dictionaries(st.text(), st.floats()))
def test_json_is_read_and_other_metrics_are_left_aside(
    rif: int, latency: float | None, others: dict[str, float]
) -> None:
    named = {**others, "rif": rif} | ({} if latency is None else {"latency": latency})
    if latency is None:
        named.pop("latency", None)
    text = "JSON " + json.dumps({"cpu_utilization": 0.3, "named_metrics": named})
    assert LoadReport.parse(text) == LoadReport(rif, latency)


def test_text_of_others_is_read() -> None:
    text = " TEXT cpu_utilization=0.3, named_metrics.rif=2.5 , named_metrics.latency=1e-3,named_metrics.name=x"
    assert LoadReport.parse(text) == LoadReport(2.5, 0.001)


@pytest.mark.parametrize("text", ["TEXT cpu_utilization=0.3", 'JSON {"cpu_utilization": 0.3}', "JSON {}"])
def test_a_good_report_without_requests_in_flight_is_none_for_us(text: str) -> None:
    assert LoadReport.parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "TEXT",
        "TEXT hello",
        "BIN CgQIARAB",
        "text named_metrics.rif=1",
        "TEXT named_metrics.rif=-1",
        "TEXT named_metrics.rif=nan",
        "TEXT named_metrics.rif=inf",
        "TEXT named_metrics.rif=many",
        "TEXT named_metrics.rif=",
        "TEXT named_metrics.rif=1_0",
        "TEXT named_metrics.rif=٣",
        "TEXT named_metrics.rif=1000001",
        "TEXT named_metrics.rif=1e999",
        "TEXT named_metrics.rif=1,named_metrics.latency=-0.1",
        "TEXT named_metrics.rif=1,named_metrics.latency=3601",
        "JSON",
        "JSON {",
        "JSON []",
        "JSON 1",
        'JSON {"named_metrics": 1}',
        'JSON {"named_metrics": {"rif": "1"}}',
        'JSON {"named_metrics": {"rif": null}}',
        'JSON {"named_metrics": {"rif": true}}',
        'JSON {"named_metrics": {"rif": NaN}}',
        'JSON {"named_metrics": {"rif": Infinity}}',
        'JSON {"named_metrics": {"rif": 1, "latency": -1}}',
        'JSON {"named_metrics": {"rif": 1' + "0" * 6000 + "}}",
        "JSON " + "[" * 8000,
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        LoadReport.parse(text)


@given(st.text() | st.builds("{} {}".format, st.sampled_from(["TEXT", "JSON"]), st.text()))
def test_any_text_is_a_report_or_an_error(text: str) -> None:
    try:
        report = LoadReport.parse(text)
    except ValueError:
        return
    assert report is None or 0 <= report.rif <= 1e6


def test_an_error_does_not_repeat_a_long_header() -> None:
    with pytest.raises(ValueError, match=r"^.{,150}$"):
        LoadReport.parse("TEXT named_metrics.rif=" + "x" * 5000)
