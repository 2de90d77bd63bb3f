#!/usr/bin/env python3
"""Holds alerts and dashboard to what a worker exports: names, labels, and a rate wherever a counter is read.

    scripts/check_monitoring.py --queries FILE

Prints a line for every fault; ends with 1 if there is one. FILE gets the dashboard's queries as rules, for `promtool check rules`.
Needs PyYAML.
"""

import argparse
import json
import pathlib
import re
import sys

import yaml

from check_manifests import EXPORTED, ROOT, exported_metrics

ALERTS = ROOT / "configs/monitoring/alerts.yaml"
DASHBOARD = ROOT / "configs/monitoring/dashboard.json"
# Where the words for refusals are.
REFUSALS = ROOT / "worker/src/error.rs"
# What Prometheus adds to each sample.
OF_PROMETHEUS = {"instance", "job", "namespace", "pod", "le"}


def series(text):
    """The labels of each series in a scrape, by name."""
    found = {}
    for metric, labels in re.findall(r"^(lacuna_\w+)(?:\{(.*)\})? ", text, re.M):
        found.setdefault(metric, set()).update(re.findall(r"(\w+)=", labels))
    return found


def faults_of(query, text):
    """What a query asks for that a worker does not say."""
    known, types = series(text), exported_metrics(text)
    for before, metric, labels in re.findall(r"(\w+\()?\b(lacuna_\w+)(?:\{(.*?)\})?", query):
        if metric not in known:
            yield f"no worker exports {metric}"
            continue
        base = re.sub(r"_(bucket|sum|count)$", "", metric)
        counts = types.get(metric, types.get(base)) in ("counter", "histogram")
        if counts and before not in ("rate(", "increase("):
            yield f"{metric} counts up, and is read without a rate"
        if not counts and before in ("rate(", "increase("):
            yield f"{metric} goes up and down, and has no rate"
        for label in set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", labels)) - known[metric] - OF_PROMETHEUS:
            yield f"{metric} has no label {label}"
        for code in re.findall(r'\bcode\s*!?=\s*"(\w+)"', labels):
            if code not in re.findall(r'StatusCode::\w+, "(\w+)"', REFUSALS.read_text()):
                yield f"no refusal is called {code}"


def queries():
    """Every query, with where it stands."""
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            yield f"panel {panel['title']}", target["expr"]


def as_rules(pairs):
    """The dashboard's queries, its variables filled in, as recording rules."""
    filled = [
        re.sub(r"\$(__rate_interval|__range)", "5m", query).replace("$worker", ".*")
        for where, query in pairs if where.startswith("panel")
    ]
    rules = [{"record": f"dashboard:query:{i}", "expr": query} for i, query in enumerate(filled)]
    return yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=pathlib.Path, required=True)
    asked = parser.parse_args()
    pairs, text = list(queries()), EXPORTED.read_text()
    asked.queries.write_text(as_rules(pairs))
    wrong = [f"{where}: {fault}" for where, query in pairs for fault in faults_of(query, text)]
    print("\n".join(wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
