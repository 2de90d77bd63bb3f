#!/usr/bin/env bash
# How near pictures by shares come to the uncut ones: PSNR of the demo model's PNG files against `--scheme local`, three
# prompts, 50 steps, for each line of options.
#
#     scripts/blind_quality.sh target/release [STEPS]
set -euo pipefail
bin=$(realpath "$1")
steps=${2:-50}
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

prompts=(
    "a large red circle above a small blue square on a yellow background"
    "a green triangle left of a white circle on a black background"
    "a small yellow square below a large purple triangle on a blue background"
)

paint() { # file, prompt, options
    local file=$1 prompt=$2
    shift 2
    "$bin/lacuna" generate -p "$prompt" --steps "$steps" --seed 42 --out "$file" "$@" >/dev/null 2>&1
}

for i in "${!prompts[@]}"; do
    paint "$folder/local-$i.png" "${prompts[$i]}" --scheme local
done
while read -r options; do
    line=
    for i in "${!prompts[@]}"; do
        # Options are words of flags and values, without blanks in them.
        # shellcheck disable=SC2086
        paint "$folder/blind-$i.png" "${prompts[$i]}" --scheme blind --workers 2 $options
        psnr=$("$bin/lacuna" metrics "$folder/local-$i.png" "$folder/blind-$i.png" --metrics psnr --json | tr -d "\n " | grep -oE "\"psnr[^0-9]*[0-9.]+" | grep -oE "[0-9.]+$" | head -1)
        line+=$(printf ' %5.1f' "$psnr")
    done
    echo "$options:$line"
done <<'OPTIONS'
--share-bits paper
--share-bits paper --share-carries 4
--share-bits speed
--share-bits speed --share-carries 2
--share-bits speed --share-carries 4
--share-bits speed --share-carries 16
--share-bits quality
--share-bits quality --share-carries 8
--share-bits paper --share-carries 8 --share-layers all
--share-bits speed --share-layers all
--share-bits quality --share-layers all
--shares ring --share-bits paper
--shares ring --share-bits speed
--shares ring --share-bits quality
OPTIONS
