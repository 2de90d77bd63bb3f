"""Checks that every crate that is compiled in has a licence of the MIT/Apache/BSD kind.

    python3 scripts/check_licences.py

`cargo deny check` with deny.toml says the same and more; this needs nothing but cargo and Python.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def satisfied(expression: str, allowed: set[str]) -> bool:
    """Whether an SPDX expression can be met by allowed licences alone."""
    words = re.findall(r"\(|\)|[^\s()/]+|/", expression)
    # Old manifests write MIT/Apache-2.0 for OR; "X WITH exception" is one licence.
    terms, i = [], 0
    while i < len(words):
        if i + 2 < len(words) and words[i + 1] == "WITH":
            terms.append(str(" ".join(words[i : i + 3]) in allowed or words[i] in allowed))
            i += 3
            continue
        translated = {"OR": "or", "/": "or", "AND": "and", "(": "(", ")": ")"}
        terms.append(translated.get(words[i]) or str(words[i] in allowed))
        i += 1
    return bool(eval(" ".join(terms), {"__builtins__": {}}))  # only True, False, and, or, brackets


def main() -> int:
    licenses = tomllib.loads((ROOT / "deny.toml").read_text())["licenses"]
    allowed = set(licenses["allow"])
    exceptions = {e["crate"]: set(e["allow"]) for e in licenses.get("exceptions", [])}
    # Platforms other than this one bring crates that are not compiled here.
    command = ["cargo", "tree", "--workspace", "--all-features", "--locked", "--edges", "normal,build", "--prefix", "none"]
    command += ["--format", "{p}|{l}"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    crates = sorted({line.removesuffix(" (*)") for line in listing.splitlines() if line})
    refused = []
    for crate in crates:
        package, _, licence = crate.partition("|")
        name = package.split()[0]
        if not satisfied(licence or "none", allowed | exceptions.get(name, set())):
            refused.append(f"{package}: {licence or 'no licence'}")
    for line in refused:
        print(line)
    print(f"{len(crates)} crates, {len(refused)} with a licence that deny.toml does not allow")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
