#!/usr/bin/env bash
# Packs binaries that are there into the Dockerfile's runtime stage, and runs the rendered Deployments in containers, without a
# registry and without a cluster: four workers on four networks of their own, which have no way out.
#
#     scripts/containers.sh FOLDER [build]      # FOLDER has lacuna and lacuna-worker, built on this Debian
#
# With `build`, the whole Dockerfile, compiled with this machine's toolchain, takes as long as that takes. FOLDER's lacuna paints. Needs root, Debian, and a
# kernel that lets one run containers; without them it says that it was skipped, and why.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() { echo "skipped: $1"; exit 0; }
binaries=$(realpath "${1:-target/release}")
whole=${2:-}
[ "$(id -u)" = 0 ] || skip "containers with networks of one's own need root"
command -v apt-get >/dev/null || skip "podman and a base image come from Debian's packages, and there is no apt-get"

packages=()
for package in podman runc netavark aardvark-dns catatonit mmdebstrap nftables uidmap iproute2 openssl; do
    dpkg -s "$package" >/dev/null 2>&1 || packages+=("$package")
done
if [ ${#packages[@]} -gt 0 ]; then
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${packages[@]}"; } \
        || skip "cannot install ${packages[*]}"
fi
. scripts/deploy_tools.sh

# Addresses that are set aside for tests (RFC 2544). Whatever is not on a network below goes nowhere, before there is one and after.
range=198.18.0.0/15
ip netns add lacuna-try 2>/dev/null || skip "this kernel makes no networks"
ip netns del lacuna-try

scratch=$(mktemp -d)
podman() { command podman --root "$scratch/store" --runroot "$scratch/run" --tmpdir "$scratch/tmp" --cgroup-manager cgroupfs --events-backend none "$@"; }
blackhole=
clean_up() {
    podman rm --all --force --time 0 >/dev/null 2>&1 || true
    for i in 1 2 3 4; do ip netns del "lacuna-pod-$i" 2>/dev/null || true; done
    [ -z "$blackhole" ] || ip route del blackhole "$range"
    podman image rm --all --force >/dev/null 2>&1 || true
    umount "$scratch/store/overlay" 2>/dev/null || true
    rm -rf "$scratch"
}
trap clean_up EXIT
cat >"$scratch/containers.conf" <<'EOF'
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime = "runc"
EOF
# Builds and their caches, too, leave nothing behind.
export CONTAINERS_CONF=$scratch/containers.conf TMPDIR=$scratch

# Stands in for the Dockerfile's base, which lies in a registry: the release that the binaries were built on.
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
base=target/tools/$release.tar
if [ ! -s "$base" ]; then
    mkdir -p target/tools
    mmdebstrap --quiet --variant=minbase "$release" "$scratch/base.tar" && mv "$scratch/base.tar" "$base"
fi
podman import --quiet "$base" "localhost/debian:$release-slim" >/dev/null 2>&1
podman run --rm --network none "localhost/debian:$release-slim" true 2>"$scratch/refusal" \
    || skip "podman runs no container here: $(tail -1 "$scratch/refusal")"

arguments=(--quiet --network host --build-arg "RUNTIME_IMAGE=localhost/debian:$release-slim")
if [ "$whole" = build ]; then
    # And for the other base: the same with a linker, this machine's toolchain, and the crates that it has fetched. They lie beside
    # the Dockerfile's cache, which would hide them.
    cargo fetch --locked --quiet
    mkdir "$scratch/rust"
    {
        echo "FROM localhost/debian:$release-slim"
        echo "RUN apt-get update && apt-get install -qy --no-install-recommends g++ libc6-dev pkg-config"
        echo "ENV PATH=/usr/local/rust/bin:\$PATH CARGO_HOME=/crates CARGO_NET_OFFLINE=true"
    } >"$scratch/rust/Dockerfile"
    podman build --quiet --network host -t localhost/rust "$scratch/rust" >"$scratch/build.log" 2>&1 || { cat "$scratch/build.log"; exit 1; }
    arguments+=(--build-arg RUST_IMAGE=localhost/rust --volume "$(rustc --print sysroot):/usr/local/rust:ro"
        --volume "${CARGO_HOME:-$HOME/.cargo}/registry:/crates/registry")
else
    arguments+=(--build-context "binaries=$binaries")
fi
for target in runtime lacuna; do
    name=lacuna-worker
    [ $target = runtime ] || name=lacuna
    podman build "${arguments[@]}" --target $target -t "$name:0.1.0" . >"$scratch/build.log" 2>&1 || { cat "$scratch/build.log"; exit 1; }
    podman run --rm --network none --read-only --user 65532:65532 --cap-drop ALL "$name:0.1.0" --version
    python3 scripts/sbom.py --packages <(podman run --rm --network none --entrypoint dpkg-query "$name:0.1.0" -W -f '${Package} ${Version} ${Architecture}\n') \
        --name "$name" >"target/tools/$name.cdx.json"
done

if ! ip route show type blackhole | grep -q "$range"; then
    ip route add blackhole "$range" && blackhole=yes
fi
for i in 1 2 3 4; do
    name=lacuna-pod-$i
    ip netns add "$name"
    ip link add "lacp$i" type veth peer name eth0 netns "$name"
    ip addr add "198.18.$((100 + i)).1/24" dev "lacp$i"
    ip link set "lacp$i" up
    ip netns exec "$name" ip addr add "198.18.$((100 + i)).2/24" dev eth0
    ip netns exec "$name" ip link set eth0 up
    ip netns exec "$name" ip link set lo up
done
PYTHONDONTWRITEBYTECODE=1 KUBECTL="$tools/kubectl" PROMTOOL="$tools/promtool" "$tools/python" tests/deploy/containers.py "$binaries" "$scratch"
