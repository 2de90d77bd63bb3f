#!/usr/bin/env bash
# What CI has no time for, on the binaries of a finished `.ci/run`. Prints a table of what was tried, how long it took and
# what came of it.
#
#     scripts/nightly.sh [FOLDER]      # FOLDER has lacuna, and lacuna-worker with the GPU backend
#     SKIP="Dockerfile|cuda" scripts/nightly.sh      # names that this matches are left out, and the table says so
set -uo pipefail
cd "$(dirname "$0")/.."

binaries=$(realpath "${1:-target/release}")
for name in lacuna lacuna-worker; do
    [ -x "$binaries/$name" ] || { echo "$binaries has no $name: cargo build --release -p $name, or .ci/run"; exit 1; }
done
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0
table="| tried | seconds | what came of it |\n|---|---|---|"

# A name, and a command of which the last line says what came of it.
try() {
    local name=$1 start=$SECONDS result
    shift
    if [ -n "${SKIP:-}" ] && [[ $name =~ $SKIP ]]; then
        table+="\n| $name | | left out |"
        return
    fi
    printf '\n=== %s (%s s)\n' "$name" "$SECONDS"
    "$@" 2>&1 | tee "$scratch/log"
    if [ "${PIPESTATUS[0]}" = 0 ]; then
        result=$(grep -v '^$' "$scratch/log" | tail -1)
    else
        result=FAILED
        failed=1
    fi
    table+="\n| $name | $((SECONDS - start)) | $result |"
}

audit() {
    "$binaries/lacuna" audit --prompts 60 --held-out 12 --audited-steps 2 --device cpu --out "$scratch/audit" || return
    grep -F "| private | 4 | own rows and strips" "$scratch/audit/audit.md" | tr -d '|' | tr -s ' '
}

# How often what reads bytes from the other side was run, in two minutes for each kind.
fuzz() {
    cargo install cargo-fuzz --locked --quiet --root target/tools || return
    PATH="$PWD/target/tools/bin:$PATH" scripts/fuzz.sh 120 | tee "$scratch/fuzz" || return
    awk '/Done/ { runs += $3 } END { print runs " executions, nothing found" }' "$scratch/fuzz"
}

# Of shares' products nobody honest is blamed, and what share of the others is.
checked() {
    cargo test --release -q -p lacuna-shares -- --ignored --nocapture a_million | grep -F "of 1000000 blamed"
}

# Of two prompts a share holder cannot say which a run was of.
told_apart() {
    cargo test --release -q -p tests --test schemes -- --ignored --nocapture five_hundred | grep -F "told right"
}

# Of what colluding workers under `blind` have, the best of all attacks, and whether their words are uniform.
blind_audit() {
    "$binaries/lacuna" audit --policies blind --workers 2,3 --ppidm false --prompts 60 --held-out 12 --audited-steps 1 --device cpu \
        --out "$scratch/blind" || return
    ! grep -F "NOT UNIFORM" "$scratch/blind/audit.md" || return
    grep -F "| blind" "$scratch/blind/audit.md" | grep -F "own rows and strips" | tail -1 | tr -d '|' | tr -s ' '
}

# Of pictures whose workers are killed, paused, cut off, slowed and answered by a faulty relay, how many finish.
chaos() {
    CHAOS_PICTURES=200 cargo test --release -q -p lacuna --test chaos -- --nocapture | tee "$scratch/chaos" || return
    grep "^chaos, seed" "$scratch/chaos"
}

# How many sessions one worker takes at once, and what memory; and what the private channel costs.
load() { cargo run --release -q -p tests --example load; }
channel() { cargo run --release -q -p tests --example channel; }

# The U-Net of SDXL at 1024x1024 takes more memory than a small machine has; 512x512 takes 10 GB of weights all the same.
sdxl() {
    "$binaries/lacuna" bench --config sdxl --batch 1 --calls 1 --schemes local,resident --wires f16 --json >"$scratch/sdxl.json" || return
    python3 - "$scratch/sdxl.json" <<'EOF'
import json
import sys

rows = json.load(open(sys.argv[1]))["rows"]
quality = lambda row: "" if row["psnr_db"] is None else f", {row['psnr_db']:.1f} dB"
print("; ".join(f"{r['scheme']} {r['seconds_per_call_median']:.1f} s a call{quality(r)}" for r in rows))
EOF
}

try "all schemes on CPUs without AVX and with AVX2, two steps" scripts/other_cpus.sh "$binaries" 2
try "four networks, 50 steps" scripts/four_networks.sh "$binaries" 50
try "two workers on the software adapter, f32 and f16" scripts/software_gpu.sh "$binaries" f32 f16
# Without its LLVM, which is downloaded from elsewhere than crates come from, the backend can be checked, and not linked.
try "the backend cuda compiles" env DOCS_RS=1 cargo check --release --locked -p lacuna-worker --no-default-features --features cuda
try "messages, the codec, the fleet file and sessions, fuzzed" fuzz
try "an audit of 60 + 12 pictures" audit
try "an audit of blind, 60 + 12 pictures" blind_audit
try "two prompts in 500 runs under blind" told_apart
try "a million honest products, and changed ones" checked
try "200 pictures, and their workers killed, paused, cut off, slowed, and answered by a faulty relay" chaos
try "1 to 96 sessions at once on one worker" load
try "TLS with a pin and a token beside plain HTTP" channel
try "the whole Dockerfile, and its workers in containers" scripts/containers.sh "$binaries" build
try "a U-Net call of SDXL's shape at 512x512" sdxl

printf "\n%s, %s\n\n%b\n" "$(date -u +%F)" "$(git rev-parse --short HEAD)" "$table"
exit $failed
