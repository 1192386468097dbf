"""What the benchmarks compute from ghz's reports and the server's metrics."""

import math

import pytest

from bench.harness import as_stream, in_lists, median, parse_ghz, parse_metrics, percentile, read_requests, with_policy
from bench.load import knee

REQUESTS = [
    {"contents": [f"{target}{i}"], "source_language_code": source, "target_language_code": target}
    for i in range(5)
    for source, target in (("zh", "en"), ("en", "zh"))
]


def test_lists_keep_directions_apart_and_leave_out_the_rest() -> None:
    lists = in_lists(REQUESTS, 2)
    assert [request["contents"] for request in lists] == [
        ["en0", "en1"],
        ["zh0", "zh1"],
        ["en2", "en3"],
        ["zh2", "zh3"],
    ]
    assert all(text.startswith(request["target_language_code"]) for request in lists for text in request["contents"])
    assert in_lists(REQUESTS, 1) == REQUESTS


def test_stream_messages_and_policy() -> None:
    messages = as_stream(with_policy(REQUESTS, "CACHE_POLICY_REFRESH"))
    assert messages[3] == {"id": "3", "content": "zh1", "source_language_code": "en", "target_language_code": "zh"}
    assert "cache_policy" not in REQUESTS[0]


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2), (0.99, 4), (0.01, 1), (0.75, 3)])
def test_percentile_is_one_of_the_values(share: float, expected: float) -> None:
    assert percentile([4, 1, 3, 2], share) == expected


def test_percentile_of_nothing() -> None:
    assert math.isnan(median([]))


def test_ghz_report_counts_accepted_and_refused_apart() -> None:
    run = parse_ghz(
        {
            "total": 2_000_000_000,
            "details": [
                {"timestamp": "2026-01-01T00:00:00.010000000Z", "latency": 10_000_000, "status": "OK", "error": ""},
                {"timestamp": "2026-01-01T00:00:01.530000000Z", "latency": 30_000_000, "status": "OK", "error": ""},
                {
                    "timestamp": "2026-01-01T00:00:01Z",
                    "latency": 1_000_000,
                    "status": "",
                    "error": "rpc error: code = ResourceExhausted desc = full",
                },
                {"timestamp": "2026-01-01T00:00:01Z", "latency": 0, "status": "Unavailable", "error": "x"},
            ],
        }
    )
    assert run.codes == {"OK": 2, "ResourceExhausted": 1, "Unavailable": 1}
    assert (run.calls, run.rate, run.latency(0.99), run.sending_seconds) == (4, 1.0, 0.03, pytest.approx(1.5))


def test_ghz_report_of_nothing() -> None:
    run = parse_ghz({"total": 0, "details": None})
    assert (run.calls, run.rate) == (0, 0)


def test_metrics_of_an_interval() -> None:
    template = (
        'translate_comments_total{{direction="zh-en",outcome="cached"}} {0}\n'
        'translate_comments_total{{direction="en-zh",outcome="translated"}} {1}\n'
        'translate_tokens_total{{pair="zh-en",kind="source"}} {2}\n'
        'translate_tokens_total{{pair="zh-en",kind="padding"}} {3}\n'
        'translate_batch_sentences_count{{pair="zh-en"}} {4}\n'
        'translate_batch_sentences_sum{{pair="zh-en"}} {5}\n'
    )
    before, after = (parse_metrics(template.format(*values)) for values in ((1, 1, 10, 0, 1, 1), (4, 2, 40, 10, 3, 9)))
    counted = after.since(before)
    assert (counted.hit_rate(), counted.padding_share(), counted.mean_batch()) == (0.75, 0.25, 4.0)


def test_metrics_of_a_quiet_interval() -> None:
    counted = parse_metrics("").since(parse_metrics(""))
    assert (counted.hit_rate(), counted.padding_share(), counted.mean_batch()) == (None, None, None)


def test_knee_is_the_last_rate_that_is_kept_up_with() -> None:
    def point(offered: float, answered: float, p99: float, refused: int = 0) -> dict[str, float]:
        return {"offered": offered, "answered": answered, "p99": p99, "refused": refused}

    points = [point(50, 49, 0.05), point(100, 98, 0.1), point(150, 140, 1.0), point(200, 199, 0.1, 3)]
    assert knee(points) == points[1]
    assert knee([]) is None


def test_load_data_is_whole() -> None:
    distinct, feed = read_requests("distinct"), read_requests("zipf")
    assert (len(distinct), len(feed)) == (8000, 20000)
    assert len({request["contents"][0] for request in feed}) < 3000
    assert all(set(request) == {"contents", "source_language_code", "target_language_code"} for request in distinct)
