#!/usr/bin/env bash
# Cargo unifies features over the packages that a command selects. Whatever burn stands on must come out the same for
# each package alone as for all of them, or `cargo build -p` compiles burn again. Prints what does not.
set -euo pipefail
cd "$(dirname "$0")/.."

features() { cargo tree --locked --no-default-features --edges normal,build,dev --prefix none --format '{p} {f}' "$@" | sed 's/ (\*)$//' | sort -u; }
# What the package that holds burn is compiled from.
below=$(features --package lacuna-model | cut -d ' ' -f 1,2 | sort -u)
all=$(features --workspace)
differ=0
for package in lacuna lacuna-instruments lacuna-model lacuna-orchestrator lacuna-protocol lacuna-served lacuna-worker tests; do
    alone=$(comm -23 <(features --package "$package") <(printf '%s\n' "$all") | grep -F "$below" || true)
    [ -z "$alone" ] && continue
    differ=1
    printf '%s alone has other features than the workspace; name those in shared/features/Cargo.toml:\n%s\n' "$package" "$alone"
done
exit "$differ"
