#!/usr/bin/env bash
# A golden picture through two workers on the GPU backend, by strips and by shares of both kinds, on an adapter that is
# emulated in software (llvmpipe): what a machine without a GPU can try of it. Held against the reference library's picture.
#
#     scripts/software_gpu.sh FOLDER [PRECISION...]      # FOLDER has lacuna, and lacuna-worker with the GPU backend
set -euo pipefail
cd "$(dirname "$0")/.."

binaries=${1:-target/release}
precisions=("${@:2}")
[ ${#precisions[@]} -gt 0 ] || precisions=(f32)
golden=tests/goldens/sd1
model=tests/goldens/models/sd1

scratch=$(mktemp -d)
workers=()
clean_up() {
    for worker in "${workers[@]}"; do kill "$worker" 2>/dev/null || true; done
    wait
    rm -rf "$scratch"
}
trap clean_up EXIT

for precision in "${precisions[@]}"; do
    : >"$scratch/fleet.toml"
    workers=()
    for i in 1 2; do
        RUST_LOG=info "$binaries/lacuna-worker" --model "$model" --device wgpu --allow-software --precision "$precision" \
            --listen 127.0.0.1:0 >"$scratch/worker-$i.log" 2>&1 &
        workers+=($!)
        for _ in $(seq 3000); do
            grep -q "ready on" "$scratch/worker-$i.log" && break
            kill -0 "${workers[-1]}" 2>/dev/null || { cat "$scratch/worker-$i.log"; exit 1; }
            sleep 0.1
        done
        url=$(grep -o "http://127.0.0.1:[0-9]*" "$scratch/worker-$i.log" | head -1)
        printf '[[worker]]\nurl = "%s"\nprovider = "p%s"\n' "$url" "$i" >>"$scratch/fleet.toml"
    done
    # A scheme, and the least PSNR. Half precision costs what it costs; f32 owes what the CPU does. Every product of shares is
    # checked, and a wrong one would end the run.
    shares="--scheme blind --share-bits quality --share-weights $precision --verify 1"
    for try in "$([ "$precision" = f32 ] && echo 60 || echo 50) --scheme resident --wire f32" "55 $shares" "55 $shares --shares ring"; do
        read -r -a flags <<<"${try#* }"
        # What tests/goldens/sd1.safetensors says of its picture.
        "$binaries/lacuna" generate "a large red circle above a small blue square on a yellow background" \
            -n "blurry, low quality" -m "$model" --seed 7 --size 16x64 --steps 8 --guidance 5 --device cpu "${flags[@]}" \
            --fleet "$scratch/fleet.toml" -o "$scratch/picture.png"
        metrics=$("$binaries/lacuna" metrics "$scratch/picture.png" "$golden.png" --metrics psnr)
        echo "two workers on the software adapter, $precision, ${flags[*]}, against the reference: $metrics"
        python3 -c 'import re, sys; sys.exit(float(re.search(r"psnr\s+([0-9.]+|inf)", sys.argv[1]).group(1)) < int(sys.argv[2]))' \
            "$metrics" "${try%% *}" || { echo "less than ${try%% *} dB"; exit 1; }
        rm "$scratch/picture.png"
    done
    kill "${workers[@]}"
    wait "${workers[@]}" || true
done
