#!/usr/bin/env bash
# Fuzzes what reads bytes from the other side: messages, and the codec of features. The corpora are in fuzz/corpus, and grow.
#
#     scripts/fuzz.sh [SECONDS FOR EACH]      # needs cargo-fuzz (cargo install cargo-fuzz) and a C++ compiler
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-30}
if ! command -v cargo-fuzz >/dev/null; then
    echo "skipped: there is no cargo-fuzz (cargo install cargo-fuzz --locked)"
    exit 0
fi
# The fuzzer's flags of the compiler are not stable; the compiler is.
export RUSTC_BOOTSTRAP=1
for target in message codec; do
    cargo fuzz run "$target" -- -max_total_time="$seconds" -print_final_stats=1 2>&1 | tail -15
done
