#!/usr/bin/env python3
"""The text of the demo model: the six novels of Jane Austen, as the Debian package r-cran-janeaustenr ships them.

    corpus.py [--deb FILE]

Prints one line per novel and the SHA-256 of the text. The novels (1811-1818) are in the public domain; the
package that carries them is under the MIT licence. Without --deb the package is fetched with `apt-get download`;
R is not needed. Needs Python 3.9, and dpkg-deb; no packages.
"""
import argparse
import hashlib
import re
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

PACKAGE, VERSION = "r-cran-janeaustenr", "1.0.0-1"
LICENCE = "the novels: public domain; the package: MIT"
DATA = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
TEXT_SHA256 = "a30d2e6723349b965a4bc61082fdb794be7ad5ecb5031516f3abd3079d637b56"
NOVELS = ["Emma", "Mansfield Park", "Northanger Abbey", "Persuasion", "Pride and Prejudice", "Sense and Sensibility"]
HEADING = re.compile(r"^\s*chapter\s+[ivxlc\d]+\.?\s*$", re.I)
# What stands after or between chapters and is not Austen's prose.
FURNITURE = re.compile(r"^\s*(volume [ivx]+|finis|the end|end of (the )?.*volume.*)\s*$", re.I)
AFTERWORD = re.compile(r"^\s*a note on the text\s*$", re.I)


def fetch(folder):
    """The package's file, downloaded into a folder."""
    subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob(f"{PACKAGE}_*.deb"))


def vectors(data):
    """The character vectors of an R lazy-load database, in file order, each as a list of lines.

    Each value is a big-endian length and a zlib stream of R's XDR serialisation, version 3.
    """
    while data:
        stream = zlib.decompressobj()
        value = stream.decompress(data[4:])
        data = stream.unused_data
        if value[:6] != b"X\n\0\0\0\3":
            raise SystemExit("corpus: the package holds a value that is not in R's serialisation format 3")
        (name,) = struct.unpack_from(">I", value, 14)
        kind, count = struct.unpack_from(">II", value, at := 18 + name)
        if kind & 0xFF != 16:
            raise SystemExit("corpus: the package holds a value that is not a character vector")
        at += 8
        lines = []
        for _ in range(count):
            _, size = struct.unpack_from(">Ii", value, at)
            lines.append(value[at + 8 : at + 8 + size].decode("utf-8"))
            at += 8 + size
        yield lines


def chapters(lines):
    """A novel's chapters, headings dropped: paragraphs on one line each, an empty line between two."""
    found, paragraph = [], []
    for line in lines + [""]:
        if AFTERWORD.match(line):
            break
        if HEADING.match(line):
            found.append([])
            paragraph = []
        elif found and line.strip() and not FURNITURE.match(line):
            # Underscores and asterisks mark italics and footnotes.
            paragraph.append(line.replace("_", "").replace("*", ""))
        elif paragraph:
            found[-1].append(re.sub(r"\s+", " ", " ".join(paragraph)).strip())
            paragraph = []
    return ["\n\n".join(p for p in chapter if p) for chapter in found]


def load(deb=None):
    """{novel: chapters}, checked against TEXT_SHA256."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        subprocess.run(["dpkg-deb", "-x", str(deb or fetch(folder)), str(folder / "x")], check=True)
        books = list(vectors((folder / "x" / DATA).read_bytes()))
    # R keeps its values in the order of their names, which is NOVELS' order; the titles are the first lines.
    if [b[0].strip().lower() for b in books] != [n.lower() for n in NOVELS]:
        raise SystemExit(f"corpus: the package holds other texts than the six novels: {[b[0] for b in books]}")
    novels = {name: chapters(lines) for name, lines in zip(NOVELS, books)}
    if digest(novels) != TEXT_SHA256:
        raise SystemExit(f"corpus: the text differs from that of {PACKAGE} {VERSION}: SHA-256 {digest(novels)}")
    return novels


def digest(novels):
    """SHA-256 of all chapters in order, each ended by a form feed."""
    return hashlib.sha256("".join(c + "\f" for n in novels.values() for c in n).encode()).hexdigest()


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--deb", type=Path, help="the package's file, if it is here already")
    novels = load(args.parse_args().deb)
    for name, found in novels.items():
        print(f"{name}: {len(found)} chapters, {sum(len(c.encode()) for c in found)} bytes")
    print(f"SHA-256 {TEXT_SHA256}")


if __name__ == "__main__":
    main()
