"""Times whole U-Net calls of this project and of diffusers, in turns.

Both build the U-Net of one config with random weights and run it in f32 on the CPU with the same number of
threads: 77 prompt tokens, batch 2 if nothing else is said. Turns make the ratio robust against other load; `--apart` is for
a U-Net that memory holds once: each begins when the other has ended, `--turns` times.

    cargo build --release --example unet_call
    python scripts/compare_speed.py target/release/examples/unet_call
    python scripts/compare_speed.py target/release/examples/unet_call --config configs/models/sdxl/unet/config.json \
        --batch 1 --latents 128 --calls 1 --apart
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def theirs(args):
    """A function that times a call of diffusers."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    config = UNet2DConditionModel.load_config(args.config.parent)
    unet = UNet2DConditionModel.from_config(config).eval()
    batch = args.batch
    size = args.latents or unet.config.sample_size or 64
    rows, columns = [size, size] if isinstance(size, int) else size
    if not args.latents:
        rows, columns = min(rows, 64), min(columns, 64)
    sample = torch.randn(batch, unet.config.in_channels, rows, columns)
    context = torch.randn(batch, 77, unet.config.cross_attention_dim)
    added = None
    if unet.config.addition_embed_type == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        sizes = torch.tensor([[512.0, 512, 0, 0, 512, 512]] * batch)
        added = {"text_embeds": torch.randn(batch, pooled), "time_ids": sizes}

    def call():
        start = time.perf_counter()
        with torch.inference_mode():
            unet(sample, 500, context, added_cond_kwargs=added)
        return time.perf_counter() - start

    return call


class Ours:
    """The example, which makes a call for each line that it is given."""

    def __init__(self, args):
        command = [args.example, args.config, args.calls + 1, args.batch, *([args.latents] if args.latents else []), "--wait"]
        environment = os.environ | {"RAYON_NUM_THREADS": str(args.threads)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = subprocess.Popen([str(word) for word in command], env=environment, **pipes)

    def __call__(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[0]} ended early")
        return float(line.split()[0])

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def timed(call, calls):
    call()  # warms up
    return [call() for _ in range(calls)]


def apart(make, args, connection):
    connection.send(timed(make(args), args.calls))


def in_turns(args):
    ours = Ours(args)
    call = theirs(args)
    ours(), call()  # the first call of each warms up
    for _ in range(args.calls):
        yield ours(), call()
    ours.end()


def one_after_the_other(args):
    for _ in range(args.turns):
        ours = Ours(args)
        mine = timed(ours, args.calls)
        ours.end()
        # In a process of its own, whose memory is free after it.
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.Process(target=apart, args=(theirs, args, sender))
        process.start()
        yield statistics.median(mine), statistics.median(receiver.recv())
        process.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("example", help="the built example unet_call")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/models/sd15/unet/config.json")
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--latents", type=int, help="rows and columns (default: the config's, at most 64)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--apart", action="store_true", help="never have both in memory")
    parser.add_argument("--turns", type=int, default=2, help="of --apart")
    args = parser.parse_args()

    ratios = []
    for mine, other in one_after_the_other(args) if args.apart else in_turns(args):
        ratios.append(mine / other)
        print(f"lacuna {mine:.2f} s, diffusers {other:.2f} s, ratio {mine / other:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f} on {args.threads} threads")


if __name__ == "__main__":
    main()
