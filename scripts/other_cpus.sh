#!/usr/bin/env bash
# The promise "to the last bit" on CPUs that this machine is not: the schemes must give the bits of `local` there, too. The
# CPUs are emulated (QEMU's user mode): Nehalem has no AVX, Haswell has AVX2 and no AVX-512.
#
#     scripts/other_cpus.sh FOLDER [STEPS] [CPU...]      # FOLDER has lacuna; a step takes half a minute
set -euo pipefail
cd "$(dirname "$0")/.."

binaries=${1:-target/release}
steps=${2:-1}
cpus=("${@:3}")
[ ${#cpus[@]} -gt 0 ] || cpus=(Nehalem Haswell)
if ! command -v qemu-x86_64 >/dev/null; then
    echo "skipped: there is no qemu-x86_64 (Debian's package qemu-user)"
    exit 0
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# What runs it (nothing: this machine itself), the scheme, the file.
generate() {
    $1 "$binaries/lacuna" generate "a red circle" --seed 3 --steps "$steps" --scheme "$2" --device cpu --no-metadata \
        -o "$3" >"$scratch/log" 2>&1 || { cat "$scratch/log"; exit 1; }
}
generate "" local "$scratch/here.png"
for cpu in "${cpus[@]}"; do
    generate "qemu-x86_64 -cpu $cpu" local "$scratch/local.png"
    for scheme in resident ppidm; do
        generate "qemu-x86_64 -cpu $cpu" "$scheme" "$scratch/$scheme.png"
        cmp "$scratch/local.png" "$scratch/$scheme.png" || {
            echo "$cpu: $scheme does not give the bits of local"
            exit 1
        }
    done
    from_here=$("$binaries/lacuna" metrics "$scratch/local.png" "$scratch/here.png" --metrics psnr)
    echo "$cpu: resident and ppidm are local to the last bit; from this machine's picture:" $(grep psnr <<<"$from_here")
done
