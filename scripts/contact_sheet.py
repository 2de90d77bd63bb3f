"""Makes assets/contact-sheet.png: pictures of the demo model through four workers, with their prompts.

    cargo build --release
    python scripts/contact_sheet.py
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]

PROMPTS = [
    "a large red circle above a small blue square on a yellow background",
    "a small green star left of a large purple ring on a white background",
    "a large white triangle on the left on a blue background",
    "a small orange square below a large cyan circle on a purple background",
    "a large yellow star in the center on a red background",
    "a large blue triangle right of a large orange ring on a green background",
    "a small red ring at the bottom on a cyan background",
    "a large purple square above a large yellow triangle on an orange background",
]
COLUMNS, SCALE, MARGIN, CAPTION = 4, 2, 12, 44


def wrap(text: str, width: int) -> str:
    """The text in lines of at most `width` characters."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/lacuna")
    parser.add_argument("--out", type=Path, default=ROOT / "assets/contact-sheet.png")
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    pictures = []
    with tempfile.TemporaryDirectory() as folder:
        for prompt in PROMPTS:
            path = Path(folder) / "picture.png"
            command = [arguments.binary, "generate", prompt, "--seed", str(arguments.seed), "--out", path]
            subprocess.run(command, cwd=ROOT, check=True)
            pictures.append(Image.open(path).convert("RGB"))
    side = pictures[0].width * SCALE
    cell = (side + MARGIN, side + MARGIN + CAPTION)
    rows = -(-len(PROMPTS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (prompt, picture) in enumerate(zip(PROMPTS, pictures)):
        x, y = MARGIN + i % COLUMNS * cell[0], MARGIN + i // COLUMNS * cell[1]
        sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, y))
        draw.multiline_text((x, y + side + 4), wrap(prompt, 42), fill="black")
    sheet.save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
