"""deploy/: alerts speak of metrics that a server has, and go off when they should; Prometheus asks with a key."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from fixtures_server import client_of, colour_service

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
METRIC = re.compile(r"\b(?:arbiter|process)_\w+|\bup\b")
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Name -> family of everything that a server with records shows, after requests that used each label."""
    from prometheus_client.parser import text_string_to_metric_families

    from judge.records.records import Records

    records = Records.in_folder(tmp_path_factory.mktemp("state"))
    with client_of(colour_service(), records) as client:
        assert client.post("/v1/verdicts", json={"images": [{"data": "bm90aGluZw=="}]}).status_code == 200
        text = client.get("/metrics").text
    records.close()
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_every_metric_of_an_alert_is_one_that_the_server_shows(families):
    samples = {sample.name for family in families.values() for sample in family.samples}
    named = {name for rule in RULES for name in METRIC.findall(rule["expr"])}
    assert {"up", "arbiter_ready", "arbiter_state_free_bytes", "arbiter_request_seconds_bucket"} <= named
    # `up` is Prometheus' own.
    assert named - {"up"} <= samples


def test_every_label_of_an_alert_is_one_that_the_metric_has(families):
    labels = {sample.name: set(sample.labels) for family in families.values() for sample in family.samples}
    of_prometheus = {"instance", "job"}
    for rule in RULES:
        for metric, selector in re.findall(r"\b(arbiter_\w+)\{([^}]*)\}", rule["expr"]):
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            assert used - of_prometheus <= labels[metric], rule["alert"]


def test_values_of_labels_are_those_of_the_code():
    from judge.server import metrics

    text = "\n".join(rule["expr"] for rule in RULES)
    for metric, known in (
        ("arbiter_images_total", metrics._IMAGE_STATUSES),
        ("arbiter_verdicts_total", {"safe", "unsafe", "unjudged"}),
    ):
        selectors = re.findall(metric + r"\{([^}]*)\}", text)
        named = {
            value
            for selector in selectors
            for values in re.findall(r'status\s*(?:=~|!=|=)\s*"([^"]+)"', selector)
            for value in values.split("|")
        }
        assert named
        assert named <= set(known), metric
    assert 'stage!="door"' in text
    assert "door" in metrics._STAGES


def test_every_alert_says_what_happens():
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names)) >= 6
    for rule in RULES:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
        assert re.fullmatch(r"\d+[mh]", rule["for"])


def test_prometheus_asks_the_server_of_compose_with_the_key_of_the_metrics():
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    [job] = config["scrape_configs"]
    assert job["job_name"] == "arbiter"
    [target] = job["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    assert host in compose["services"]
    assert port == compose["services"]["server"]["ports"][0].rpartition(":")[2]
    assert job["authorization"]["credentials_file"] == "/run/secrets/metrics_key"
    mounted = {volume.split(":")[1] for volume in compose["services"]["prometheus"]["volumes"]}
    assert {f"/etc/prometheus/{name}" for name in ("prometheus.yml", *config["rule_files"])} <= mounted
    with client_of(colour_service()) as client:
        assert client.get(job["metrics_path"]).status_code == 200


ROUTE = 'instance="a", route="/v1/verdicts", method="POST"'
SERIES = {
    "ArbiterDown": {'up{job="arbiter", instance="a"}': "0x60"},
    "ArbiterNotReady": {'arbiter_ready{instance="a"}': "0x60", 'arbiter_draining{instance="a"}': "0x60"},
    "ArbiterErrors": {
        f'arbiter_requests_total{{{ROUTE}, status="200"}}': "0+100x60",
        f'arbiter_requests_total{{{ROUTE}, status="503"}}': "0+10x60",
    },
    "ArbiterDatabaseAway": {'arbiter_records_errors_total{instance="a"}': "0+3x60"},
    "ArbiterUnjudged": {
        'arbiter_verdicts_total{instance="a", status="safe", stage="student"}': "0+100x60",
        'arbiter_verdicts_total{instance="a", status="unjudged", stage="student"}': "0+10x60",
    },
    "ArbiterUnreadableImages": {
        'arbiter_images_total{instance="a", status="ok"}': "0+10x60",
        'arbiter_images_total{instance="a", status="truncated"}': "0+10x60",
    },
    "ArbiterDecoderKilled": {
        'arbiter_images_total{instance="a", status="ok"}': "0+10000x60",
        'arbiter_images_total{instance="a", status="crashed"}': "0+100x60",
    },
    "ArbiterQueueFull": {
        f'arbiter_requests_total{{{ROUTE}, status="200"}}': "0+100x60",
        f'arbiter_requests_total{{{ROUTE}, status="429"}}': "0+10x60",
    },
    "ArbiterSlow": {
        'arbiter_request_seconds_bucket{instance="a", route="/v1/verdicts", le="2.5"}': "0+1x60",
        'arbiter_request_seconds_bucket{instance="a", route="/v1/verdicts", le="5.0"}': "0+100x60",
        'arbiter_request_seconds_bucket{instance="a", route="/v1/verdicts", le="+Inf"}': "0+100x60",
    },
    "ArbiterDiskLow": {'arbiter_state_free_bytes{instance="a"}': "1e9x60"},
}
"""What makes an alert go off, and no other one; a sample a minute."""
HEALTHY = {
    'up{job="arbiter", instance="a"}': "1x60",
    'arbiter_ready{instance="a"}': "1x60",
    'arbiter_draining{instance="a"}': "0x60",
    f'arbiter_requests_total{{{ROUTE}, status="200"}}': "0+100x60",
    f'arbiter_requests_total{{{ROUTE}, status="422"}}': "0+10x60",
    'arbiter_records_errors_total{instance="a"}': "0x60",
    'arbiter_verdicts_total{instance="a", status="safe", stage="student"}': "0+100x60",
    'arbiter_verdicts_total{instance="a", status="unjudged", stage="door"}': "0+9x60",
    'arbiter_images_total{instance="a", status="ok"}': "0+100x60",
    'arbiter_images_total{instance="a", status="truncated"}': "0+9x60",
    'arbiter_state_free_bytes{instance="a"}': "1e11x60",
}


def test_there_is_a_case_for_every_alert():
    assert SERIES.keys() == {rule["alert"] for rule in RULES}


@promtool
def test_alerts_go_off_when_they_should_and_only_then(tmp_path):
    names = [rule["alert"] for rule in RULES]
    cases = []
    for wanted, series in {**SERIES, None: HEALTHY}.items():
        expected = [
            {"eval_time": "55m", "alertname": name, "exp_alerts": []} for name in names if name != wanted
        ]
        given = [{"series": name, "values": values} for name, values in series.items()]
        cases.append({"interval": "1m", "input_series": given, "alert_rule_test": expected})
        if (
            wanted is not None
        ):  # promtool compares texts too, which are not the point: that it goes off is asked in PromQL
            asked = f'ALERTS{{alertname="{wanted}", alertstate="firing"}}'
            cases[-1]["promql_expr_test"] = [
                {"expr": f"count({asked})", "eval_time": "55m", "exp_samples": [{"labels": "{}", "value": 1}]}
            ]
    test = {"rule_files": [str(DEPLOY / "alerts.yml")], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "test.yml").write_text(json.dumps(test))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "test.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_promtool_accepts_both_files(tmp_path):
    for name in ("prometheus.yml", "alerts.yml"):
        text = (DEPLOY / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("/run/secrets/metrics_key", str(tmp_path / "key")))
    (tmp_path / "key").write_text("key")
    done = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
