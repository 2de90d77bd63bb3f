#!/usr/bin/env python3
"""Lists what an image is made of (SBOM), in CycloneDX's JSON: Debian's packages, and the crates of Cargo.lock.

    scripts/sbom.py --name lacuna-worker --packages FILE >sbom.json

FILE has a line for each package: name, version, architecture, as `dpkg-query -W -f '${Package} ${Version} ${Architecture}\\n'`
prints them within the image. Cargo.lock has what tests need, too: a crate that is listed may not be in the binary, and none
that is in it is missing.
"""

import argparse
import json
import pathlib
import sys
import tomllib
from urllib.parse import quote

LOCK = pathlib.Path(__file__).resolve().parent.parent / "Cargo.lock"


def crates(lock):
    for package in lock["package"]:
        component = {"type": "library", "name": package["name"], "version": package["version"],
                     "bom-ref": f"cargo:{package['name']}@{package['version']}"}
        # Ours have no source; they are in this repository.
        if "source" in package:
            component["purl"] = f"pkg:cargo/{package['name']}@{quote(package['version'])}"
            component["hashes"] = [{"alg": "SHA-256", "content": package["checksum"]}]
        yield component


def packages(lines):
    for line in lines:
        name, version, architecture = line.split()
        yield {"type": "library", "name": name, "version": version, "bom-ref": f"deb:{name}@{version}",
               "purl": f"pkg:deb/debian/{name}@{quote(version)}?arch={architecture}"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--packages", type=pathlib.Path, required=True)
    asked = parser.parse_args()
    lock = tomllib.loads(LOCK.read_text())
    version = next(p["version"] for p in lock["package"] if p["name"] == "lacuna-worker")
    components = [*packages(asked.packages.read_text().splitlines()), *crates(lock)]
    if not components or len({c["bom-ref"] for c in components}) != len(components):
        sys.exit("a component is there twice, or there is none")
    json.dump({"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
               "metadata": {"component": {"type": "container", "name": asked.name, "version": version}},
               "components": components}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
