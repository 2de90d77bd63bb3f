#!/usr/bin/env bash
# Holds a GPU against the CPU: kernels, pictures, speed, the split, memory. Prints one table a step.
#
#     cargo build --release -p lacuna-worker -p lacuna -p lacuna-model --features lacuna/wgpu \
#         --bin lacuna --bin lacuna-worker --example unet_call
#     scripts/gpu_check.sh [FOLDER OF THE BINARIES [FOLDER FOR RESULTS]]
#
# BUDGET (seconds, 480) bounds the whole; a step that does not fit is left out and said so. PyTorch is timed
# beside ours where python3 has torch and diffusers.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=${1:-target/release}
[ -x "$bin/unet_call" ] || ln -sf examples/unet_call "$bin/unet_call"
results=${2:-target/gpu-check}
budget=${BUDGET:-480}
software=${SOFTWARE:+--allow-software}
mkdir -p "$results"
workers=()
trap 'kill "${workers[@]}" 2>/dev/null' EXIT

step() { printf '\n=== %s (%s s)\n' "$1" "$SECONDS"; }
# Runs a command for at most so many seconds; the check goes on whatever becomes of it.
try() {
    local limit=$1
    shift
    if [ $((SECONDS + limit)) -gt "$budget" ]; then
        echo "left out, $SECONDS of $budget s are gone: $*"
        return 0
    fi
    timeout "$limit" "$@" || echo "FAILED ($?): $*"
}
# Four workers on the GPU, in a precision; writes the fleet file.
start_workers() {
    local port
    : >"$results/fleet.toml"
    workers=()
    for port in 7811 7812 7813 7814; do
        "$bin/lacuna-worker" --model "$1" --device wgpu $software --precision "$2" --listen "127.0.0.1:$port" \
            2>"$results/worker-$2-$port.log" &
        workers+=($!)
        printf '[[worker]]\nurl = "http://127.0.0.1:%s"\nprovider = "p%s"\n' "$port" "$port" >>"$results/fleet.toml"
    done
    for port in 7811 7812 7813 7814; do
        for _ in $(seq 120); do
            (exec 3<>"/dev/tcp/127.0.0.1/$port" && printf 'GET /health/ready HTTP/1.0\r\n\r\n' >&3 && grep -q ' 200 ' <&3) \
                2>/dev/null && break
            sleep 0.5
        done
    done
}
stop_workers() {
    kill "${workers[@]}" 2>/dev/null
    wait "${workers[@]}" 2>/dev/null
    workers=()
}
gpu_memory() { nvidia-smi --query-gpu=memory.used --format=csv,noheader 2>/dev/null || echo "nvidia-smi is not here"; }

step "card and driver"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "nvidia-smi is not here"

for precision in f32 f16; do
    step "kernels against the CPU, $precision"
    RUST_LOG=warn,shared=debug try ${KERNELS:-100} "$bin/lacuna-worker" --self-test --device wgpu $software --precision $precision
done

step "speed of one U-Net call, SD 1.5 shape, batch 2, 64x64"
for flags in --wgpu "--wgpu --f16"; do
    echo "memory before: $(gpu_memory)"
    # shellcheck disable=SC2086
    try 120 "$bin/unet_call" configs/models/sd15/unet/config.json 12 $flags
done

step "pictures against the CPU's (decibels)"
picture() { # NAME MODEL OPTIONS...
    local name=$1 model=$2
    shift 2
    try 60 "$bin/lacuna" generate "a large red circle above a small blue square on a yellow background" --model "$model" \
        --steps 10 --seed 3 --out "$results/$name.png" "$@" >"$results/$name.log" 2>&1
    [ -s "$results/$name.png" ] || { echo "$name: no picture"; tail -n 2 "$results/$name.log"; return; }
    [ "$name" = "${name%cpu}" ] || return 0
    printf '%s: ' "$name"
    "$bin/lacuna" metrics "$results/$name.png" "$results/${name%%-*}-cpu.png" --metrics psnr 2>&1 | tail -n 1
}
for model in ${MODELS:-assets/demo-model tests/goldens/models/sd1 tests/goldens/models/sd2 tests/goldens/models/odd}; do
    name=$(basename "$model" | tr -d -)
    picture "$name-cpu" "$model" --scheme local --device cpu
    picture "$name-local" "$model" --scheme local --device wgpu $software
done
for precision in f32 f16; do
    start_workers assets/demo-model $precision
    picture "demomodel-resident-$precision" assets/demo-model --scheme resident --device cpu --fleet "$results/fleet.toml"
    picture "demomodel-ppidm-$precision" assets/demo-model --scheme ppidm --device cpu --fleet "$results/fleet.toml"
    picture "demomodel-residentgpu-$precision" assets/demo-model --scheme resident --device wgpu $software \
        --fleet "$results/fleet.toml"
    stop_workers
done

step "PyTorch beside ours, in turns"
if python3 -c 'import torch, diffusers' 2>/dev/null; then
    try 120 python3 scripts/compare_gpu.py --example "$bin/unet_call" --calls 10
else
    echo "skipped PyTorch: python3 has not both torch and diffusers"
fi

step "the split: four workers on the one GPU beside the whole"
try 150 "$bin/lacuna" bench --device wgpu $software --schemes local,resident --lanes true,false --calls 3 --turns 2

step "SDXL shape, f16: memory and a call"
try 150 "$bin/unet_call" configs/models/sdxl/unet/config.json 3 --wgpu --f16

step "done"
