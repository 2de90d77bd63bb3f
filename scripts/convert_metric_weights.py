"""Makes the weight files of `lacuna metrics` from the published ones, which you download yourself:

    FID, KID    https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth
                (Google's graph of 2015, Apache-2.0, ported by pytorch-fid)
    LPIPS alex  https://download.pytorch.org/models/alexnet-owt-7be5be79.pth       (torchvision, BSD-3-Clause)
                https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/alex.pth  (BSD-2-Clause)
    LPIPS vgg   https://download.pytorch.org/models/vgg16-397923af.pth             (torchvision, BSD-3-Clause)
                https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth   (BSD-2-Clause)

The last of each LPIPS is also in the package: `pip install lpips`, lpips/weights/v0.1.

    python scripts/convert_metric_weights.py --inception pt_inception-2015-12-05-6726825d.pth
    python scripts/convert_metric_weights.py --alex alexnet-owt-7be5be79.pth --alex-channels alex.pth
    python scripts/convert_metric_weights.py --vgg vgg16-397923af.pth --vgg-channels vgg.pth
    lacuna metrics ours theirs --weights metric-weights
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

# Of every batch normalisation in Inception.
EPS = 0.001


def fold_inception(state: dict) -> dict:
    """Each batch normalisation folded into the convolution before it, in f64; the classifier left out."""
    out = {}
    for name, kernel in state.items():
        if not name.endswith(".conv.weight"):
            continue
        layer = name.removesuffix(".conv.weight")
        kinds = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, variance = (state[f"{layer}.bn.{kind}"].double() for kind in kinds)
        scale = gamma / (variance + EPS).sqrt()
        out[f"{layer}.weight"] = (kernel.double() * scale[:, None, None, None]).float()
        out[f"{layer}.bias"] = (beta - mean * scale).float()
    return out


def fold_lpips(trunk: dict, channels: dict) -> dict:
    """The trunk's convolutions, and the weight of each channel as a vector."""
    out = {name: t.float() for name, t in trunk.items() if name.startswith("features.")}
    for i in range(5):
        out[f"lin{i}.weight"] = channels[f"lin{i}.model.1.weight"].float().flatten()
    return out


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inception", type=Path, help="pytorch-fid's file")
    for net in ("alex", "vgg"):
        parser.add_argument(f"--{net}", type=Path, help="torchvision's file")
        parser.add_argument(f"--{net}-channels", type=Path, help="the file of lpips")
    parser.add_argument("--out", type=Path, default=Path("metric-weights"), help="folder to write to")
    args = parser.parse_args()

    files = {}
    if args.inception:
        files["inception"] = fold_inception(load(args.inception))
    for net in ("alex", "vgg"):
        trunk, channels = getattr(args, net), getattr(args, f"{net}_channels")
        if (trunk is None) != (channels is None):
            parser.error(f"LPIPS {net} needs both --{net} and --{net}-channels")
        if trunk:
            files[f"lpips-{net}"] = fold_lpips(load(trunk), load(channels))
    if not files:
        parser.error("name at least one published file")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        path = args.out / f"{name}.safetensors"
        save_file({k: t.contiguous() for k, t in tensors.items()}, path)
        print(f"{path}: {sum(t.numel() for t in tensors.values()) / 1e6:.1f} million parameters")


if __name__ == "__main__":
    main()
