#!/usr/bin/env bash
# The kernels, which hold all unsafe code, under AddressSanitizer: as they run on this machine, and on narrower ones.
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
case $host in
    x86_64-*-linux-gnu | aarch64-*-linux-gnu) ;;
    *) echo "skipped: no AddressSanitizer for $host"; exit 0 ;;
esac
# The sanitizer's flag of the compiler is not stable; the compiler is.
export RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address
for vectors in "" avx512 avx2 portable; do
    LACUNA_VECTORS=$vectors cargo test --release -p lacuna-kernels --lib --target "$host" --target-dir target/sanitized
done
