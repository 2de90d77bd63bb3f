"""Golden metrics: what scikit-image, Pillow, lpips, pytorch-fid, clean-fid and torchmetrics compute.

Pictures, features and the weights of the networks are not stored: `uniform` draws them, here and in
tests/src/metric_inputs.rs. Run on its own from scripts/: python -m goldens.metrics ../tests/goldens
"""

import json
import math
import sys
import tempfile
from pathlib import Path
from unittest import mock

import lpips
import numpy as np
import pytorch_fid.fid_score
import pytorch_fid.inception
import torch
import transformers
from cleanfid import fid as clean_fid
from cleanfid.resize import build_resizer
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.image.fid import NoTrainInceptionV3

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert_metric_weights import fold_inception, fold_lpips  # noqa: E402
from train_demo_features import Features  # noqa: E402

PAIRS = [(64, 64), (61, 47), (300, 200)]  # columns, rows
RESIZED = [(70, 45), (640, 411)]
LPIPS_PAIRS = [(64, 64), (97, 83)]
CLIP_SIZES = [(128, 128), (91, 60), (40, 57)]
CLIP_PROMPTS = ["a small red circle", "two blue squares, far apart", ""]
STRIDES = {"resized": 4001, "features": 16}


def uniform(name: str, count: int) -> np.ndarray:
    """`count` numbers in [0, 1), of 24 bits: SplitMix64 from the FNV-1a hash of `name`."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(2**24)


def picture(width: int, height: int, name: str) -> np.ndarray:
    """Ramps that wrap round, with a noise of 6 bits: [rows, columns, 3]."""
    y, x, c = np.mgrid[:height, :width, :3]
    noise = (uniform(name, height * width * 3) * 64).astype(int).reshape(height, width, 3)
    return ((3 * x + 5 * y + 40 * c + noise) % 256).astype(np.uint8)


def features(name: str, count: int, dim: int) -> np.ndarray:
    """`count` vectors of `dim` values that vary more in some directions than in others."""
    values = uniform(name, count * dim).reshape(count, dim)
    return values * (1 + np.arange(dim) % 7).astype(np.float32) ** 2


def weights(shapes: dict) -> dict:
    """Kernels with the variance 2 / fan-in, biases of up to 0.1, and channels' weights in [0, 1)."""
    out = {}
    for name, shape in shapes.items():
        values = uniform(name, math.prod(shape))
        if len(shape) > 1:
            spread = np.sqrt(np.float32(6) / np.float32(math.prod(shape[1:])))
        else:
            spread = np.float32(0.1)
        if not name.startswith("lin"):
            values = spread * (np.float32(2) * values - np.float32(1))
        out[name] = torch.from_numpy(values.reshape(shape))
    return out


def inception_golden() -> dict:
    """Features of one picture with each package's own preparation and network."""
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch.object(pytorch_fid.inception, "load_state_dict_from_url", lambda *a, **k: state):
            # Twice: the first time for its shapes, with whatever torchvision starts from.
            state = pytorch_fid.inception._inception_v3(num_classes=1008, aux_logits=False, weights=None).state_dict()
            shapes = {name: list(t.shape) for name, t in fold_inception(state).items()}
            drawn = weights(shapes)
            for name in state:
                layer, kind = name.rsplit(".", 2)[0], name.split(".", 1)[1]
                if name.endswith(".conv.weight"):
                    state[name] = drawn[f"{layer}.weight"]
                elif name.endswith(".bn.weight"):
                    # With this variance the normalisation divides by one.
                    state[name], state[f"{layer}.bn.bias"] = torch.ones_like(state[name]), drawn[f"{layer}.bias"]
                    state[f"{layer}.bn.running_mean"] = torch.zeros_like(state[name])
                    state[f"{layer}.bn.running_var"] = torch.full_like(state[name], 1 - 0.001)
            network = pytorch_fid.inception.InceptionV3(resize_input=False, normalize_input=False).eval()
            whole = pytorch_fid.inception.InceptionV3().eval()
        path = Path(folder) / "inception.pth"
        torch.save(state, path)
        metrics = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
    pixels = picture(*RESIZED[1], "inception")
    chw = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())
    clean = torch.from_numpy(build_resizer("clean")(pixels).transpose(2, 0, 1)[None].copy())
    found = {
        "clean": network((clean - 128) / 128)[0],
        "pytorch": whole(chw / 255)[0],
        "torchmetrics": metrics(chw),
    }
    stride = STRIDES["features"]
    return {
        "size": RESIZED[1],
        "parameters": list(shapes.items()),
        "features": {k: v.double().flatten()[::stride].tolist() for k, v in found.items()},
    }


def resize_golden() -> list:
    """The network's input, some of its values."""
    out = []
    for size in RESIZED:
        pixels = picture(*size, "resize")
        chw = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()).float()
        sized = {"size": (299, 299), "mode": "bilinear", "align_corners": False}
        found = {
            "clean": (build_resizer("clean")(pixels).transpose(2, 0, 1) - 128) / 128,
            "pytorch": 2 * torch.nn.functional.interpolate(chw / 255, **sized).numpy() - 1,
            "torchmetrics": (torch.nn.functional.interpolate(chw, antialias=True, **sized).numpy() - 128) / 128,
        }
        values = {k: v.astype(float).flatten()[:: STRIDES["resized"]].tolist() for k, v in found.items()}
        out.append({"size": size, "values": values})
    return out


def lpips_golden(net: str) -> dict:
    model = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False).eval()
    trunk = {name.split(".", 1)[1]: t for name, t in model.net.state_dict().items()}
    state = {f"features.{name}": t for name, t in trunk.items()}
    shapes = {name: list(t.shape) for name, t in fold_lpips(state, model.state_dict()).items()}
    drawn = weights(shapes)
    for name, t in model.net.named_parameters():
        t.data = drawn[f"features.{name.split('.', 1)[1]}"]
    for i, lin in enumerate(model.lins):
        lin.model[-1].weight.data = drawn[f"lin{i}.weight"].reshape(1, -1, 1, 1)
    distances = []
    for size in LPIPS_PAIRS:
        pair = [picture(*size, name) for name in ("a", "b")]
        a, b = (torch.from_numpy(p.transpose(2, 0, 1)[None] / np.float32(127.5) - 1) for p in pair)
        distances.append({"size": size, "distance": model(a, b).item()})
    return {"parameters": list(shapes.items()), "pairs": distances}


def clip_golden(models: Path) -> dict:
    """CLIP scores of a small CLIP, with the tokenizer of one of the golden models."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(models / "sd1" / "tokenizer")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    tokens = {"vocab_size": len(tokenizer), **ends}
    config = transformers.CLIPConfig(
        text_config={**tokens, "hidden_size": 32, "intermediate_size": 48, **sizes},
        vision_config={"hidden_size": 48, "intermediate_size": 64, "image_size": 56, "patch_size": 14, **sizes},
        projection_dim=12,
    )
    model = transformers.CLIPModel(config).eval()
    shapes = {name: list(t.shape) for name, t in model.state_dict().items() if t.dim() > 0}
    model.load_state_dict(weights(shapes), strict=False)
    images = transformers.CLIPImageProcessor(do_resize=False, crop_size={"height": 56, "width": 56})
    cases = []
    for size in CLIP_SIZES:
        for prompt in CLIP_PROMPTS:
            # Resized as the first implementation does it; torchvision's bytes differ by one here and there.
            to = [side * 56 // min(size) for side in size]
            resized = Image.fromarray(picture(*size, "clip")).resize(to, Image.Resampling.BICUBIC)
            pixels = images(resized, return_tensors="pt")
            words = tokenizer([prompt], return_tensors="pt", padding="max_length", truncation=True)
            found = model(pixel_values=pixels["pixel_values"], **words)
            cosine = (found.image_embeds.double() * found.text_embeds.double()).sum().item()
            cases.append({"size": size, "prompt": prompt, "score": max(100 * cosine, 0)})
    assert sum(case["score"] > 0 for case in cases) >= 3, cases
    return {"config": config.to_dict(), "parameters": list(shapes.items()), "cases": cases}


def demo_golden() -> dict:
    """The demo features of one picture."""
    network = Features().eval()
    shapes = {name: list(t.shape) for name, t in network.state_dict().items()}
    network.load_state_dict(weights(shapes))
    pixels = torch.from_numpy(picture(*RESIZED[0], "demo").transpose(2, 0, 1)[None].copy()).float()
    sized = torch.nn.functional.interpolate(pixels, (128, 128), mode="bilinear", antialias=True)
    features = network(sized / 127.5 - 1)[0].double().tolist()
    return {"size": RESIZED[0], "parameters": list(shapes.items()), "features": features}


def pair_golden() -> list:
    out = []
    for size in PAIRS:
        a, b = picture(*size, "a"), picture(*size, "b")
        ssim = structural_similarity(
            a, b, channel_axis=2, gaussian_weights=True, use_sample_covariance=False, data_range=255
        )
        psnr = peak_signal_noise_ratio(a, b, data_range=255)
        out.append({"size": size, "psnr": float(psnr), "ssim": float(ssim)})
    return out


def distance_golden() -> dict:
    """Of sets that are larger than their vectors are long, and of smaller ones."""
    large = [features("large a", 400, 48), features("large b", 300, 48) + np.float32(0.5)]
    small = [features("small a", 20, 48), features("small b", 30, 48) + np.float32(0.5)]
    a, b = (x.astype(np.float64) for x in large)
    statistics = [(x.mean(0), np.cov(x, rowvar=False)) for x in (a, b)]
    np.random.seed(3)
    kid = clean_fid.kernel_distance(a, b, num_subsets=5, max_subset_size=50)
    return {
        "clean_fid": float(clean_fid.fid_from_feats(a, b)),
        "pytorch_fid": float(pytorch_fid.fid_score.calculate_frechet_distance(*statistics[0], *statistics[1])),
        "small": by_factors(*small),
        "kid": float(kid),
    }


def by_factors(a: np.ndarray, b: np.ndarray) -> float:
    """The distance of few vectors: the root's trace is the nuclear norm of the deviations' products.

    scipy's root of a product without full rank, which the packages take, has no digits to compare.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    da, db = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    root = np.linalg.svd(da @ db.T, compute_uv=False).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + (da**2).sum() + (db**2).sum() - 2 * root)


def write(out_dir: Path) -> None:
    """Writes metrics.json, and a JPEG with what Pillow reads from it."""
    torch.set_grad_enabled(False)
    golden = {
        "strides": STRIDES,
        "pairs": pair_golden(),
        "distances": distance_golden(),
        "resized": resize_golden(),
        "inception": inception_golden(),
        "lpips": {net: lpips_golden(net) for net in ("alex", "vgg")},
        "clip": clip_golden(out_dir / "models"),
        "demo": demo_golden(),
    }
    (out_dir / "metrics.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    y, x = np.mgrid[:40, :50]
    smooth = np.stack([128 + 90 * np.sin(x / 9 + c) + 30 * np.cos(y / 5 - c) for c in range(3)], -1)
    Image.fromarray(smooth.astype(np.uint8)).save(out_dir / "metrics.jpg", quality=92)
    Image.open(out_dir / "metrics.jpg").save(out_dir / "metrics-jpg.png", optimize=True)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
