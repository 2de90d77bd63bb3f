"""Golden files of prompts as people write them, on the tiny models `sd1` and `xl`: embeddings of textual inversion, and weights.

    embeddings/toy.safetensors          {"<toy>": [3, D]}, as the reference writes it
    embeddings/mood-7.safetensors       {"emb_params": [1, D]}, as a web interface does
    embeddings/pair.safetensors         {"clip_l": [2, D], "clip_g": [2, D']}, of SDXL's two text encoders

Each case is `<name>.png` and `<name>.safetensors`, as `families.py` has them. Embeddings are loaded by the reference's
`load_textual_inversion`. The reference has no weights; here they are by the rule that the web interfaces follow:

    a chunk is start, at most 75 tokens, end, padding; each is encoded alone, and all are joined along the tokens;
    the states of each token are multiplied with its weight, and then the chunk's with mean before / mean after;
    the shorter prompt is filled up with chunks of no text; the whole text's vector is that of the first chunk.

Weighted prompts are listed as their pieces are to be read, so that no second parser is held against the first.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import families
from .models import NEGATIVE, check_sane, save

LONG = "a very detailed painting of the mountains at sunset, "


def write(out_dir: Path) -> None:
    """Writes the embeddings and every case."""
    folder = out_dir / "embeddings"
    folder.mkdir(exist_ok=True)
    for name, tensors in embeddings(out_dir).items():
        save_file(tensors, folder / f"{name}.safetensors")
    for name, case in CASES.items():
        pipe = families.load(out_dir / "models" / case["model"])
        for file, token, encoder in case.get("embeddings", []):
            load(pipe, folder / f"{file}.safetensors", token, encoder)
        told = case["told"](pipe)
        made = goldens(pipe, case, told)
        check_sane(name, made)
        for what, others in case["ignored"].items():
            other = goldens(pipe, case, others(pipe))["pipe.image"]
            psnr = -10 * float(torch.log10(((other - made["pipe.image"]) ** 2).mean()))
            assert psnr < 40, f"{name}: without {what} the picture differs by {psnr:.1f} dB only"
        description = families.describe(case["model"], case, pipe)
        save(out_dir, name, made, description | {"prompt": case["prompt"]})


def embeddings(out_dir: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Random vectors of the size that trained ones have beside the vocabulary's."""
    generator = torch.Generator("cpu").manual_seed(99)

    def draw(count: int, width: int) -> torch.Tensor:
        return torch.randn((count, width), generator=generator) * 0.8

    xl = families.load(out_dir / "models" / "xl")
    widths = [encoder.config.hidden_size for encoder in (xl.text_encoder, xl.text_encoder_2)]
    return {
        "toy": {"<toy>": draw(3, 32)},
        "mood-7": {"emb_params": draw(1, 32).half()},
        "pair": {"clip_l": draw(2, widths[0]), "clip_g": draw(2, widths[1])},
    }


def load(pipe, path: Path, token: str | None, encoder: int | None) -> None:
    if encoder is None:
        pipe.load_textual_inversion(str(path.parent), weight_name=path.name, token=token)
        return
    key, suffix = ("clip_l", "") if encoder == 0 else ("clip_g", "_2")
    pipe.load_textual_inversion(
        {key: load_file(path)[key]},
        token=token,
        text_encoder=getattr(pipe, f"text_encoder{suffix}"),
        tokenizer=getattr(pipe, f"tokenizer{suffix}"),
    )


def goldens(pipe, case: dict, told: dict) -> dict[str, torch.Tensor]:
    """As those of a family, of a pipeline that is told so much."""
    # A case's own prompts are as the command line has them.
    return families.goldens(pipe, case | {"negative": None, "call": {"prompt": None, **told}})


def as_text(prompt: str, negative: str | None):
    return lambda _pipe: {"prompt": prompt, "negative_prompt": negative}


def as_pieces(prompt: list, negative: list, xl: bool = False):
    """Both prompts as lists of sections of (text, weight)."""

    def told(pipe) -> dict:
        suffixes = ["", "_2"] if xl else [""]
        joined, pooled = [], None
        for suffix in suffixes:
            tokenizer, encoder = getattr(pipe, f"tokenizer{suffix}"), getattr(pipe, f"text_encoder{suffix}")
            both = [chunks(tokenizer, sections) for sections in (prompt, negative)]
            count = max(map(len, both))
            both = [encode(tokenizer, encoder, each + [[]] * (count - len(each)), xl) for each in both]
            joined.append([states for states, _ in both])
            pooled = [whole for _, whole in both]
        names = ["prompt_embeds", "negative_prompt_embeds"]
        out = {name: torch.cat([states[i] for states in joined], -1) for i, name in enumerate(names)}
        if xl:
            out |= {"pooled_prompt_embeds": pooled[0], "negative_pooled_prompt_embeds": pooled[1]}
        return out

    return told


def chunks(tokenizer, sections: list) -> list[list[tuple[int, float]]]:
    """Tokens and their weights, at most 75 a chunk; every section begins one."""
    out = []
    for section in sections:
        pairs = [
            (token, weight)
            for text, weight in section
            for token in tokenizer(text, add_special_tokens=False, truncation=False).input_ids
        ]
        out += [pairs[at : at + 75] for at in range(0, max(len(pairs), 1), 75)]
    return out


def encode(tokenizer, encoder, all_chunks: list, xl: bool):
    """[1, N T, D], and the whole text's vector [1, D']."""
    states, pooled = [], None
    for pairs in all_chunks:
        ids = [tokenizer.bos_token_id, *(token for token, _ in pairs), tokenizer.eos_token_id]
        ids += [tokenizer.pad_token_id] * (77 - len(ids))
        weights = [1.0, *(weight for _, weight in pairs)]
        weights += [1.0] * (77 - len(weights))
        output = encoder(torch.tensor([ids]), output_hidden_states=True)
        z = output.hidden_states[-2] if xl else output.last_hidden_state
        weighted = z * torch.tensor(weights)[None, :, None]
        if any(weight != 1.0 for weight in weights):
            weighted = weighted * (z.mean() / weighted.mean())
        states.append(weighted)
        pooled = output[0] if pooled is None else pooled
    return torch.cat(states, 1), pooled


def plain_weights(sections: list) -> list:
    return [[(text, 1.0) for text, _ in section] for section in sections]


TOY, MOOD = "a photo of the <toy> on a yellow background", "blurry mood-7"
PAIR = "a large red pair on a yellow background"

# As the prompts beside them are to be read.
WEIGHTED = [
    [
        ("a ", 1.0),
        ("large red", 1.4),
        (" circle and a ", 1.0),
        ("small", 1.1),
        (" ", 1.0),
        ("blue", 1.21),
        (" square (left), ", 1.0),
        (LONG * 4, 1.0),
    ],
    [("yellow", 1.1**2 * 0.5), (" ", 1.1**2), ("background", 1.1)],
]
WEIGHTED_TEXT = (
    rf"a (large red:1.4) circle and a (small) ((blue)) square \(left\), {LONG * 4}BREAK (((yellow:.5) ) background)"
)
WEIGHTED_NEGATIVE, WEIGHTED_NEGATIVE_TEXT = [[("blurry", 1 / 1.1), (", low quality", 1.0)]], "[blurry], low quality"

XL_WEIGHTED, XL_WEIGHTED_TEXT = [[("a ", 1.0), ("red circle", 1.6)], [("a photo", 1.0)]], "a (red circle:1.6) BREAK a photo"
XL_NEGATIVE, XL_NEGATIVE_TEXT = [[("low", 0.6), (" quality", 1.0)]], "(low:0.6) quality"

CASES = {
    "embedded": {
        "model": "sd1",
        "embeddings": [("toy", None, None), ("mood-7", "mood-7", None)],
        "prompt": TOY,
        "negative": MOOD,
        "told": as_text(TOY, MOOD),
        "ignored": {
            "<toy>": as_text(TOY.replace("<toy>", ""), MOOD),
            "mood-7": as_text(TOY, MOOD.replace("mood-7", "")),
        },
    },
    "xl-embedded": {
        "model": "xl",
        "embeddings": [("pair", "pair", 0), ("pair", "pair", 1)],
        "prompt": PAIR,
        "negative": NEGATIVE,
        "told": as_text(PAIR, NEGATIVE),
        "ignored": {"the embedding": as_text(PAIR.replace("pair", ""), NEGATIVE)},
    },
    "weighted": {
        "model": "sd1",
        "prompt": WEIGHTED_TEXT,
        "negative": WEIGHTED_NEGATIVE_TEXT,
        "told": as_pieces(WEIGHTED, WEIGHTED_NEGATIVE),
        "ignored": {
            "weights": as_pieces(plain_weights(WEIGHTED), plain_weights(WEIGHTED_NEGATIVE)),
            "further chunks": as_pieces([WEIGHTED[0]], WEIGHTED_NEGATIVE),
        },
    },
    "xl-weighted": {
        "model": "xl",
        "prompt": XL_WEIGHTED_TEXT,
        "negative": XL_NEGATIVE_TEXT,
        "told": as_pieces(XL_WEIGHTED, XL_NEGATIVE, xl=True),
        "ignored": {
            "weights": as_pieces(plain_weights(XL_WEIGHTED), plain_weights(XL_NEGATIVE), xl=True),
            "further chunks": as_pieces(XL_WEIGHTED[:1], XL_NEGATIVE, xl=True),
        },
    },
}
for number, case in enumerate(CASES.values()):
    case |= {"size": (32, 24), "steps": 4, "guidance": 5.0, "seed": 51 + number}
    if case["prompt"] in (WEIGHTED_TEXT, XL_WEIGHTED_TEXT):
        case["flags"] = ["--prompt-syntax", "weighted"]
