"""Times whole U-Net calls of this project and of diffusers, in turns.

Both build the U-Net of one config with random weights and run it in f32 on the CPU with the same number of
threads: batch 2, 77 prompt tokens. Turns make the ratio robust against other load.

    cargo build --release --example unet_call
    python scripts/compare_speed.py target/release/examples/unet_call
"""

import argparse
import os
import statistics
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("example", help="the built example unet_call")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/models/sd15/unet/config.json")
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()

    environment = os.environ | {"RAYON_NUM_THREADS": str(args.threads)}
    command = [args.example, str(args.config), str(args.calls + 1), "--wait"]
    ours = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    )

    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    config = UNet2DConditionModel.load_config(args.config.parent)
    unet = UNet2DConditionModel.from_config(config).eval()
    size = unet.config.sample_size or 64
    rows, columns = (min(s, 64) for s in ([size, size] if isinstance(size, int) else size))
    sample = torch.randn(2, unet.config.in_channels, rows, columns)
    context = torch.randn(2, 77, unet.config.cross_attention_dim)
    added = None
    if unet.config.addition_embed_type == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(2, pooled), "time_ids": torch.tensor([[512.0, 512, 0, 0, 512, 512]] * 2)}

    def call_theirs():
        start = time.perf_counter()
        with torch.inference_mode():
            unet(sample, 500, context, added_cond_kwargs=added)
        return time.perf_counter() - start

    def call_ours():
        ours.stdin.write("\n")
        ours.stdin.flush()
        line = ours.stdout.readline()
        if not line:
            raise SystemExit(f"{args.example} ended early")
        return float(line.split()[0])

    call_ours(), call_theirs()  # the first call of each warms up
    ratios = []
    for _ in range(args.calls):
        mine, theirs = call_ours(), call_theirs()
        ratios.append(mine / theirs)
        print(f"lacuna {mine:.2f} s, diffusers {theirs:.2f} s, ratio {mine / theirs:.2f}", flush=True)
    ours.stdin.close()
    ours.wait()
    print(f"median ratio {statistics.median(ratios):.2f} on {args.threads} threads")


if __name__ == "__main__":
    main()
