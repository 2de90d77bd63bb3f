"""Times PSNR and SSIM of this project and of scikit-image on the same pictures and cores, in turns.

    cargo build --release
    python scripts/compare_metrics.py target/release/lacuna --pairs 1000

Pairs of 512x512 PNG files are drawn into a temporary folder. scikit-image reads them with Pillow, in as many
processes as we have threads.

    python scripts/compare_metrics.py target/release/lacuna --check

holds figures of the program against those of scikit-image, lpips, pytorch-fid and clean-fid over 24 pairs of
random sizes, with random weights (batch normalisation included) through convert_metric_weights.py.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# One thread in each process.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from skimage.metrics import peak_signal_noise_ratio, structural_similarity  # noqa: E402


def draw(index: int, folder: Path, width: int, height: int) -> None:
    """A pair: soft waves, and the same with noise and a little blur."""
    random = np.random.default_rng(index)
    y, x, c = np.mgrid[:height, :width, :3]
    phases = random.uniform(0, 6, 4)
    a = 128 + 70 * np.sin(x / 31 + c + phases[0]) + 40 * np.cos(y / 17 - c + phases[1]) + 15 * np.sin(x * y / 999)
    b = a + random.normal(0, 2 + 10 * random.random(), a.shape)
    for side, values in (("a", a), ("b", b)):
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / side / f"{index:05}.png", compress_level=1)


def of_pair(paths: tuple[Path, Path]) -> tuple[float, float]:
    a, b = (np.asarray(Image.open(path).convert("RGB")) for path in paths)
    psnr = peak_signal_noise_ratio(a, b, data_range=255)
    options = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 255}
    return psnr, structural_similarity(a, b, channel_axis=2, **options)


def pairs_of(folder: Path) -> list[tuple[Path, Path]]:
    return [(path, folder / "b" / path.name) for path in sorted((folder / "a").iterdir())]


def run_ours(binary: str, folder: Path, threads: int, *more: str) -> dict:
    command = [binary, "metrics", folder / "a", folder / "b", "--json", "--device", "cpu", *more]
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
    return json.loads(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)


def compare_speed(binary: str, folder: Path, args: argparse.Namespace) -> None:
    pairs = pairs_of(folder)
    ratios = []
    with multiprocessing.Pool(args.threads) as pool:
        pool.map(of_pair, pairs[: args.threads])  # imports
        for _ in range(args.turns):
            start = time.perf_counter()
            found = run_ours(binary, folder, args.threads, "--metrics", "psnr,ssim")
            ours = time.perf_counter() - start
            start = time.perf_counter()
            values = np.array(pool.map(of_pair, pairs, chunksize=8))
            theirs = time.perf_counter() - start
            ratios.append(ours / theirs)
            off = max(abs(found["psnr"] - values[:, 0].mean()), abs(found["ssim"] - values[:, 1].mean()))
            print(f"lacuna {ours:.1f} s, scikit-image {theirs:.1f} s, ratio {ours / theirs:.3f}, means differ by {off:.0e}")
    print(f"{len(pairs)} pairs on {args.threads} threads: median ratio {statistics.median(ratios):.3f}")


def check(binary: str, folder: Path) -> None:
    """Random weights of every kind, through the files that the packages and the program read."""
    import lpips
    import torch
    from cleanfid import fid as clean_fid
    from cleanfid.resize import build_resizer
    from pytorch_fid import fid_score, inception

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    network = inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    for name, t in network.state_dict().items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(t)
        elif name.endswith(("bn.weight", "running_var")):
            t.uniform_(0.7, 1.3)
        elif name.endswith(("bn.bias", "running_mean")):
            t.uniform_(-0.2, 0.2)
    state = network.state_dict()
    torch.save(state, folder / "inception.pth")
    inception.load_state_dict_from_url = lambda *a, **k: state
    network = inception.InceptionV3().eval()
    bare = inception.InceptionV3(resize_input=False, normalize_input=False).eval()
    judges = {net: lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False) for net in ("alex", "vgg")}
    command = [sys.executable, Path(__file__).with_name("convert_metric_weights.py"), "--out", folder / "weights"]
    command += ["--inception", folder / "inception.pth"]
    for net, judge in judges.items():
        for lin in judge.lins:
            lin.model[-1].weight.uniform_(0, 1)
        trunk = {f"features.{name.split('.', 1)[1]}": t for name, t in judge.net.state_dict().items()}
        torch.save(trunk, folder / f"{net}.pth")
        torch.save(judge.state_dict(), folder / f"{net}-channels.pth")
        command += [f"--{net}", folder / f"{net}.pth", f"--{net}-channels", folder / f"{net}-channels.pth"]
    subprocess.run(command, check=True)

    pairs = pairs_of(folder)
    read = lambda path: np.asarray(Image.open(path).convert("RGB"))  # noqa: E731
    tensor = lambda pixels: torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())  # noqa: E731
    features = {"pytorch": [], "clean": []}
    for side in range(2):
        paths = [pair[side] for pair in pairs]
        features["pytorch"].append([network(tensor(read(p)) / 255)[0].flatten().numpy() for p in paths])
        resized = [tensor(build_resizer("clean")(read(p))) for p in paths]
        features["clean"].append([bare((x - 128) / 128)[0].flatten().numpy() for x in resized])
    values = np.array([of_pair(pair) for pair in pairs])
    want = {"psnr": values[:, 0].mean(), "ssim": values[:, 1].mean()}
    for net, judge in judges.items():
        scaled = [[tensor(read(p)) / 127.5 - 1 for p in pair] for pair in pairs]
        want[f"lpips {net}"] = np.mean([judge(a, b).item() for a, b in scaled])
    for resize, (a, b) in features.items():
        a, b = np.array(a, np.float64), np.array(b, np.float64)
        want[f"fid {resize}, by factors"] = by_factors(a, b)
        want[f"kid {resize}"] = clean_fid.kernel_distance(a, b, num_subsets=1)
        try:
            statistics_of = [(x.mean(0), np.cov(x, rowvar=False)) for x in (a, b)]
            want[f"fid {resize}, by sqrtm"] = fid_score.calculate_frechet_distance(*statistics_of[0], *statistics_of[1])
        except ValueError as error:
            print(f"pytorch-fid's own distance of {len(a)} pictures: {error}")
    got = {}
    weights = ("--weights", str(folder / "weights"))
    for net in judges:
        found = run_ours(binary, folder, 2, *weights, "--metrics", "psnr,ssim,lpips", "--lpips-net", net)
        got |= {"psnr": found["psnr"], "ssim": found["ssim"], f"lpips {net}": found["lpips"]}
    for resize in features:
        found = run_ours(binary, folder, 2, *weights, "--metrics", "fid,kid", "--fid-resize", resize)
        got[f"kid {resize}"] = found["kid"]
        got |= {name: found["fid"] for name in want if name.startswith(f"fid {resize}")}
    for name, value in want.items():
        print(f"{name:<26} reference {value:<16.9g} lacuna {got[name]:<16.9g} relative {got[name] / value - 1:.1e}")


def by_factors(a: np.ndarray, b: np.ndarray) -> float:
    """The distance of fewer vectors than values, of which the root of a product has no digits (goldens/metrics.py)."""
    da, db = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    root = np.linalg.svd(da @ db.T, compute_uv=False).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + (da**2).sum() + (db**2).sum() - 2 * root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", help="the built lacuna")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--check", action="store_true", help="compare figures, not times")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for side in ("a", "b"):
            (folder / side).mkdir()
        random = np.random.default_rng(0)
        for index in range(24 if args.check else args.pairs):
            draw(index, folder, *(random.integers(100, 500, 2) if args.check else (512, 512)))
        check(args.binary, folder) if args.check else compare_speed(args.binary, folder, args)


if __name__ == "__main__":
    main()
