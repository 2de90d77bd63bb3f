"""Times U-Net calls on a CUDA GPU by PyTorch, f32 and f16, beside this project's in turns.

Both build the U-Net of one config with random weights: batch 2, 77 prompt tokens, latents of at most 64x64.

    cargo build --release -p lacuna-model --features wgpu --example unet_call
    python scripts/compare_gpu.py --example target/release/examples/unet_call
"""

import argparse
import statistics
import subprocess
import time
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

ROOT = Path(__file__).resolve().parent.parent


class Ours:
    """The example, waiting for a line before each call."""

    def __init__(self, example, config, calls, flags):
        command = [example, str(config), str(calls), "--wait", "--wgpu", *flags]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def call(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the example ended early")
        return float(line.split()[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--example", required=True, help="the built example unet_call")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/models/sd15/unet/config.json")
    parser.add_argument("--calls", type=int, default=10)
    args = parser.parse_args()

    torch.manual_seed(0)
    print(f"PyTorch {torch.__version__} on {torch.cuda.get_device_name()}")
    config = UNet2DConditionModel.load_config(args.config.parent)
    for name, dtype, flags in (("f32", torch.float32, []), ("f16", torch.float16, ["--f16"])):
        unet = UNet2DConditionModel.from_config(config).eval().to("cuda", dtype)
        sample = torch.randn(2, unet.config.in_channels, 64, 64, device="cuda", dtype=dtype)
        context = torch.randn(2, 77, unet.config.cross_attention_dim, device="cuda", dtype=dtype)

        def call_theirs():
            torch.cuda.synchronize()
            start = time.perf_counter()
            with torch.inference_mode():
                unet(sample, 500, context).sample.float().cpu()
            return time.perf_counter() - start

        ours = Ours(args.example, args.config, args.calls + 4, flags)
        for _ in range(4):
            call_theirs(), ours.call()
        pairs = [(ours.call(), call_theirs()) for _ in range(args.calls)]
        mine, theirs = (statistics.median(column) for column in zip(*pairs))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{name}: lacuna {mine * 1e3:.1f} ms, PyTorch {theirs * 1e3:.1f} ms, ratio {ratio:.2f}", flush=True)
        ours.process.stdin.close()
        ours.process.wait()
        del unet


if __name__ == "__main__":
    main()
