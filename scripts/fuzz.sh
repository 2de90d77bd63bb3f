#!/usr/bin/env bash
# Fuzzes what reads bytes from the other side: messages, and the codec of features; the file of the workers; and what is asked of a
# worker's sessions, in any order. They begin from fuzz/corpus, and what they find stays where GROWN says.
#
#     [GROWN=FOLDER] scripts/fuzz.sh [SECONDS FOR EACH]      # needs cargo-fuzz (cargo install cargo-fuzz) and a C++ compiler
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-30}
if ! command -v cargo-fuzz >/dev/null; then
    echo "skipped: there is no cargo-fuzz (cargo install cargo-fuzz --locked)"
    exit 0
fi
# The fuzzer's flags of the compiler are not stable; the compiler is.
export RUSTC_BOOTSTRAP=1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for target in message codec fleet sessions; do
    grown=${GROWN:-$scratch}/$target
    mkdir -p "$grown"
    cargo fuzz run "$target" "$grown" "fuzz/corpus/$target" -- -max_total_time="$seconds" -print_final_stats=1 2>"$scratch/log" || {
        tail -40 "$scratch/log"
        exit 1
    }
    echo "$target: $(grep '^Done' "$scratch/log"), nothing found"
done
