#!/usr/bin/env bash
# A whole picture of a large model while the user's side is held to so much memory: text, U-Net with a worker, decoding.
#
#     python scripts/random_sdxl.py /tmp/sdxl
#     scripts/within_memory.sh FOLDER /tmp/sdxl [GIGABYTES] [SIZE] [STEPS]      # FOLDER has lacuna and lacuna-worker
#
# The worker holds the U-Net in f32, outside of the limit: SDXL's takes 10 GB. Needs root and a memory cgroup; without them it says that it was
# skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

binaries=$1 model=$2 gigabytes=${3:-4} size=${4:-1024x1024} steps=${5:-2}
scratch=$(mktemp -d)
old=/sys/fs/cgroup/memory/lacuna-$$ new=/sys/fs/cgroup/lacuna-$$
if mkdir "$old" 2>/dev/null; then
    group=$old limit=memory.limit_in_bytes peak=memory.max_usage_in_bytes
elif mkdir "$new" 2>/dev/null && [ -e "$new/memory.max" ]; then
    group=$new limit=memory.max peak=memory.peak
else
    echo "skipped: there is no memory cgroup to make one below"
    exit 0
fi
worker=
clean_up() {
    [ -z "$worker" ] || { kill "$worker" 2>/dev/null && wait "$worker"; } || true
    rmdir "$group"
    rm -rf "$scratch"
}
trap clean_up EXIT
echo "$((gigabytes * 1000 * 1000 * 1000))" >"$group/$limit"

"$binaries/lacuna-worker" --model "$model" --device cpu --listen 127.0.0.1:7791 2>"$scratch/worker.log" &
worker=$!
for _ in $(seq 600); do
    grep -q "ready on" "$scratch/worker.log" && break
    kill -0 "$worker" || { cat "$scratch/worker.log"; exit 1; }
    sleep 1
done
printf '[[worker]]\nurl = "http://127.0.0.1:7791"\nprovider = "a"\n' >"$scratch/fleet.toml"
(
    echo "$BASHPID" >"$group/cgroup.procs"
    exec "$binaries/lacuna" generate "a photo of the astronaut" --model "$model" --device cpu --fleet "$scratch/fleet.toml" \
        --scheme resident --wire f16 --guidance 1 --steps "$steps" --size "$size" --seed 1 \
        --out "$scratch/picture.png" --report "$scratch/report.json"
)
python3 - "$scratch/report.json" "$scratch/picture.png" "$group/$peak" <<'EOP'
import json
import sys

report, picture, peak = json.load(open(sys.argv[1])), open(sys.argv[2], "rb").read(), int(open(sys.argv[3]).read())
assert picture[:4] == b"\x89PNG" and len(picture) > 10_000, len(picture)
print(f"peak of the process {report['peak_memory'] / 1e9:.2f} GB, of its group with the files' pages {peak / 1e9:.2f} GB")
EOP
