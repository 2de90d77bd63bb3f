#!/usr/bin/env bash
# A picture through four workers on four networks of their own, as four providers have them, over TLS with pinned keys:
# nothing is on loopback, so the policy `private` is in force. Held against the picture that is made at home.
#
#     scripts/four_networks.sh FOLDER [STEPS]      # FOLDER has lacuna and lacuna-worker
#
# Needs root and `ip` (iproute2); without them it says that it was skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

binaries=${1:-target/release}
steps=${2:-50}
model=assets/demo-model
prompt="a large red circle above a small blue square on a yellow background"
if [ "$(id -u)" != 0 ] || ! command -v ip >/dev/null || ! ip netns add lacuna-try 2>/dev/null; then
    echo "skipped: networks of one's own need root, iproute2 and a kernel that lets one make them"
    exit 0
fi
ip netns del lacuna-try

scratch=$(mktemp -d)
workers=()
clean_up() {
    for worker in "${workers[@]}"; do kill "$worker" 2>/dev/null || true; done
    for i in 1 2 3 4; do ip netns del "lacuna-$i" 2>/dev/null || true; done
    rm -rf "$scratch"
}
trap clean_up EXIT

for i in 1 2 3 4; do
    # Addresses that are set aside for tests (RFC 2544).
    here=198.18.$i.1 there=198.18.$i.2 name=lacuna-$i
    ip netns add "$name"
    ip link add "lac$i" type veth peer name eth0 netns "$name"
    ip addr add "$here/24" dev "lac$i"
    ip link set "lac$i" up
    ip netns exec "$name" ip addr add "$there/24" dev eth0
    ip netns exec "$name" ip link set eth0 up
    # It makes itself a key and a token, and says by which it is known.
    ip netns exec "$name" "$binaries/lacuna-worker" --model "$model" --device cpu --listen "$there:7700" \
        --identity "$scratch/identity-$i" --entry >"$scratch/entry-$i.toml" 2>"$scratch/worker-$i.log" &
    workers+=($!)
    for _ in $(seq 100); do
        grep -q "^pin" "$scratch/entry-$i.toml" && break
        sleep 0.1
    done
    sed "s/WHOSE-MACHINE/cloud-$i/" "$scratch/entry-$i.toml" >>"$scratch/fleet.toml"
done

ask() { "$binaries/lacuna" workers --fleet "$scratch/fleet.toml" "$@"; }
for _ in $(seq 50); do
    ask >"$scratch/workers.txt" 2>&1 && break
    sleep 0.2
done
cat "$scratch/workers.txt"
# Who has another key is not who is meant.
sed 's/^pin = "sha256:.\{8\}/pin = "sha256:00000000/' "$scratch/fleet.toml" >"$scratch/others.toml"
if "$binaries/lacuna" workers --fleet "$scratch/others.toml" >/dev/null 2>&1; then
    echo "a token went to a machine that is not the one that is meant"
    exit 1
fi
# In plain nothing goes to another machine.
sed -e 's/https/http/' -e '/^pin/d' "$scratch/fleet.toml" >"$scratch/plain.toml"
if "$binaries/lacuna" workers --fleet "$scratch/plain.toml" >/dev/null 2>&1; then
    echo "a token went to another machine in plain, and nobody asked for that"
    exit 1
fi

generate() { "$binaries/lacuna" generate -m "$model" -p "$prompt" --seed 7 --steps "$steps" --device cpu "$@"; }
generate --fleet "$scratch/fleet.toml" --report "$scratch/report.json" -o "$scratch/four.png"
generate --scheme local -o "$scratch/home.png"
metrics=$("$binaries/lacuna" metrics "$scratch/four.png" "$scratch/home.png" --metrics psnr --json)
python3 - "$scratch/report.json" "$metrics" <<'EOF'
import json
import sys

report, metrics = json.load(open(sys.argv[1])), json.loads(sys.argv[2])
views = report["ledger"]
assert len(views) == 4, views
for provider, view in views.items():
    assert view["rows"] <= 0.25 + 1e-9 and not view["prompt"], (provider, view)
psnr = metrics["psnr"]  # null where the pictures are the same
assert psnr is None or psnr >= 60, metrics
print("four networks: no provider saw more than a quarter of the rows;", "the same picture" if psnr is None else f"{psnr:.1f} dB")
EOF
