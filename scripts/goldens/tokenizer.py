"""A tiny CLIP tokenizer: byte-level BPE of a few hundred entries, in the files that real models ship.

The ids have the same structure as CLIP's own: 256 bytes, the same 256 with the end-of-word mark, the
merges, then `<|startoftext|>` and `<|endoftext|>`. So `!` has id 0, which SD 2.x uses as its padding.
"""

import json
from collections import Counter
from pathlib import Path

END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 160

# What the merges are learnt from: the words of the test prompts and of the demo model, so that prompts meet
# long tokens, half-merged words and bare bytes.
CORPUS = """
a an the of and in on above below left right large small red green blue yellow purple orange white black circle
square triangle background photo photograph riding horse astronaut dog cat life it's they're we'd i'm he'll we've
don't large circle small square large red circle above a small blue square on a yellow background a photo of the
astronaut riding a horse blurry low quality blurry low quality café café crème brûlée naïve 日本語 日本 русский текст
very very very detailed painting painting painting of the the mountains at sunset sunset !!! ... ?!
"""


def byte_symbols() -> dict[int, str]:
    """CLIP's printable stand-in for each byte, in the order in which CLIP numbers them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def learn_merges(count: int) -> list[tuple[str, str]]:
    """Plain BPE on CORPUS; ties go to the alphabetically first pair, so that the result is the same everywhere."""
    symbols = byte_symbols()
    words = Counter()
    for word in CORPUS.split():
        letters = [symbols[b] for b in word.encode()]
        letters[-1] += END_OF_WORD
        words[tuple(letters)] += 1

    merges = []
    for _ in range(count):
        pairs = Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        words = Counter({merge_pair(word, best): n for word, n in words.items()})
    return merges


def merge_pair(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Joins every occurrence of `pair` in `word`, from the left."""
    out, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            out.append(word[i] + word[i + 1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Token to id, numbered as CLIP numbers its own."""
    base = list(byte_symbols().values())
    tokens = base + [s + END_OF_WORD for s in base] + [a + b for a, b in merges] + [START, END]
    # Two merges can make the same token from different parts; it keeps its first id.
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def write_tokenizer(folder: Path, pad_token: str) -> None:
    """Writes vocab.json, merges.txt and the two config files, as SD 1.5 and SD 2.1 have them."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(MERGES)
    vocab = vocabulary(merges)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=True) + "\n")
    lines = ["#version: 0.2"] + [f"{a} {b}" for a, b in merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    special = {"bos_token": added_token(START), "eos_token": added_token(END), "unk_token": added_token(END)}
    write_json(folder / "special_tokens_map.json", {**special, "pad_token": pad_token})
    config = {name: {"__type": "AddedToken", **token} for name, token in special.items()}
    config |= {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": pad_token,
        "tokenizer_class": "CLIPTokenizer",
    }
    write_json(folder / "tokenizer_config.json", config)


def added_token(content: str) -> dict:
    """A special token as `transformers` writes it."""
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
