#!/usr/bin/env bash
# The Dockerfile, the Kubernetes manifests, the alerts and the dashboard, as far as they can be checked without running them.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/deploy_tools.sh
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$tools/hadolint" Dockerfile

for overlay in configs/kubernetes/overlays/*/; do
    "$tools/kubectl" kustomize "$overlay" >"$scratch/$(basename "$overlay").yaml"
done
[ "$(ls "$scratch" | wc -l)" -ge 4 ] || { echo "there are not four overlays"; exit 1; }
# The oldest Kubernetes that the manifests are for (preStop's sleep), and the newest that the validator knows. It has no schemas of
# custom resources and warns of them; check_manifests.py has.
for version in 1.30 1.37; do
    "$tools/kubernetes-validate" --strict --quiet --no-warn -k "$version" "$scratch"/*.yaml configs/kubernetes/*.yaml
done
"$tools/python" scripts/check_manifests.py "$scratch"/*.yaml

"$tools/python" scripts/check_monitoring.py --queries "$scratch/queries.yml"
if [ -x "$tools/promtool" ]; then
    "$tools/promtool" check rules configs/monitoring/alerts.yaml "$scratch/queries.yml"
    "$tools/python" scripts/check_manifests.py --classic tests/deploy/metrics.txt | "$tools/promtool" check metrics
    (cd tests/deploy && "$tools/promtool" test rules alerts.test.yaml)
else
    echo "skipped: promtool is in Debian's package prometheus, and there is no apt-get here"
fi

# Each check finds what it is for.
PYTHONDONTWRITEBYTECODE=1 KUBECTL="$tools/kubectl" "$tools/python" -m unittest discover -s tests/deploy
