#!/usr/bin/env python3
"""Write THIRD_PARTY_LICENSES: what the extension module contains of others, and their terms.

Usage: third_party_licences.py [--check]

Those are the crates that `manyhands-python` links, by `cargo metadata`, with the texts that lie in
their sources, and the Rust standard library with what it links, by the notices that the toolchain
brings. Where a crate gives the choice, MIT is taken. The result depends on Cargo.lock and on the
version of Rust alone; --check only says whether the file is up to date.
"""

import html
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "THIRD_PARTY_LICENSES"
TOP = "manyhands-python"
PLATFORM = "x86_64-unknown-linux-gnu"
FEWEST_CRATES = 5
RULE = "=" * 80
LICENCE_FILE = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)
# What the standard library uses on other systems than Linux, or only to be built and tested.
NOT_IN_OURS = re.compile(
    r"(cc|dlmalloc|fortanix|getopts|hermit|moto|r-efi|rand|shlex|unwinding|vex|wasi|windows|wit-)"
)
NOTICE = re.compile(r"<h3>📦 (?P<name>\S+)-(?P<version>\d[^<]*)</h3>(?P<body>.*?)(?=<h3>|\Z)", re.S)
TEXT = re.compile(r"<summary><code>([^<]*)</code></summary>\s*<pre>(.*?)</pre>", re.S)


class Work(NamedTuple):
    """Something that is linked, and its terms."""

    name: str
    version: str
    terms: str
    texts: tuple[str, ...]


def tidy(text: str) -> str:
    """The text without what differs for no reason between copies of one licence."""
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").expandtabs(4).split("\n")]
    return "\n".join(lines).strip("\n")


def chosen(terms: str, names: list[str]) -> list[str]:
    """Of the names of a work's licence files, those of the terms under which we use it."""
    alternatives = {part.strip(" ()") for part in re.split(r"\bOR\b|/", terms)}
    mit = [name for name in names if "mit" in name.lower()]
    if "MIT" in alternatives and " AND " not in terms and mit:
        return mit
    return names


def linked(metadata: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The packages of other people that end up in the module: no tools, no macros, no tests."""
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    [top] = [key for key, package in packages.items() if package["name"] == TOP]
    seen, waiting = {top}, [top]
    while waiting:
        key = waiting.pop()
        package = packages[key]
        if any("proc-macro" in target["kind"] for target in package["targets"]):
            continue
        if package["source"] is not None:
            yield package
        for needed in nodes[key]["deps"]:
            is_linked = any(kind["kind"] is None for kind in needed["dep_kinds"])
            if is_linked and needed["pkg"] not in seen:
                seen.add(needed["pkg"])
                waiting.append(needed["pkg"])


def crates() -> list[Work]:
    done = subprocess.run(
        ["cargo", "metadata", "--locked", "--format-version=1", f"--filter-platform={PLATFORM}"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    )
    found = []
    for package in linked(json.loads(done.stdout)):
        folder = Path(package["manifest_path"]).parent
        names = sorted(path.name for path in folder.iterdir() if LICENCE_FILE.match(path.name))
        if not names:
            raise SystemExit(f"{package['name']} brings no text of its licence: add one by hand.")
        terms = package["license"] or "see below"
        texts = tuple(tidy((folder / name).read_text("utf-8")) for name in chosen(terms, names))
        found.append(Work(package["name"], package["version"], terms, texts))
    if len(found) < FEWEST_CRATES:
        raise SystemExit(f"Only {len(found)} crates were seen: this looks in the wrong place.")
    return sorted(found)


def standard_library() -> list[Work]:
    def output(*command: str) -> str:
        return subprocess.run(
            command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()

    documents = Path(output("rustc", "--print=sysroot")) / "share/doc/rust"
    notices = documents / "COPYRIGHT-library.html"
    if not notices.exists():
        raise SystemExit(f"{notices} is missing: install Rust's documentation (rust-docs).")
    version = output("rustc", "--version").split()[1]
    own = tuple(
        tidy((documents / "licenses" / name).read_text("utf-8")).replace(
            "<year> <copyright holders>", "The Rust Project Developers"
        )
        for name in ("MIT.txt", "Unicode-3.0.txt")
    )
    found = [Work("the Rust standard library", version, "(MIT OR Apache-2.0) AND Unicode-3.0", own)]
    for notice in NOTICE.finditer(notices.read_text("utf-8")):
        if NOT_IN_OURS.match(notice["name"]):
            continue
        terms = re.search(r"<b>License:</b> ([^<]*)</p>", notice["body"])
        files = {name: tidy(html.unescape(text)) for name, text in TEXT.findall(notice["body"])}
        if terms is None or not files:
            raise SystemExit(f"{notices} has another form than this script knows.")
        texts = tuple(files[name] for name in chosen(terms[1], sorted(files)))
        found.append(Work(notice["name"], notice["version"], html.unescape(terms[1]), texts))
    if len(found) < FEWEST_CRATES:
        raise SystemExit(f"{notices} has another form than this script knows.")
    return found


def document(parts: list[tuple[str, list[Work]]]) -> str:
    """The whole file: first what is linked, then each text once."""
    lines = [
        "manyhands is under the MIT licence or the Apache licence 2.0, see LICENSE-MIT and",
        "LICENSE-APACHE. Its extension module contains the works of others, named here, with",
        "the terms that their authors offer; the texts follow. Where there is a choice, MIT is",
        "taken.",
    ]
    owners: dict[str, list[str]] = {}
    for title, works in parts:
        lines += ["", f"{title}:", ""]
        for work in works:
            name = f"{work.name} {work.version}"
            lines.append(f"  {name:<36} {work.terms}")
            for text in work.texts:
                users = owners.setdefault(text, [])
                if name not in users:
                    users.append(name)
    for text, names in owners.items():
        lines += ["", RULE, *names, RULE, "", text]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    libraries = crates()
    text = document(
        [("Crates", libraries), ("The standard library, and what it contains", standard_library())]
    )
    if not arguments:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        print(f"{TARGET.name} is not up to date: run `make licences`.", file=sys.stderr)
        return 1
    print(f"licences: {len(libraries)} crates and the standard library in {TARGET.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
