#!/usr/bin/env python3
"""Check what the Markdown files say about the repository: that their links lead somewhere.

* A relative link names a file or folder that exists, and its #anchor a heading of that file.
* A `make target` named in code exists in the Makefile.

Code examples are run by tests/docs. Pages of other sites are not visited.
"""

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIPPED_FOLDERS = {"target", "dist", "node_modules"}
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(\s*<?([^)>\s]+)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^\[[^\]\n]+\]:\s+<?([^>\s]+)>?", re.MULTILINE)
CODE_SPAN = re.compile(r"`[^`\n]*`")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
MAKE_IN_SPAN = re.compile(r"`make ([a-z][a-z-]*)[^`\n]*`")
MAKE_IN_FENCE = re.compile(r"^\s*(?:\$\s*)?make ([a-z][a-z-]*)", re.MULTILINE)
MAKE_TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)


def markdown_files() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*.md")):
        folders = path.relative_to(ROOT).parts[:-1]
        if not any(part.startswith(".") or part in SKIPPED_FOLDERS for part in folders):
            yield path


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors of a file's headings: lower case, punctuation dropped, dashes for spaces."""
    seen: dict[str, int] = {}
    result = set()
    for heading in HEADING.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        result.add(f"{slug}-{count}" if count else slug)
    return frozenset(result)


def broken_link(source: Path, target: str) -> str | None:
    """What is wrong with a link, or None."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target, re.IGNORECASE):
        return None
    name, _, anchor = target.partition("#")
    path = (source.parent / name).resolve() if name else source
    if not path.exists():
        return f"links to {target}, which does not exist"
    if anchor and path.suffix == ".md" and anchor not in anchors(path):
        return f"links to {target}, but {path.name} has no such heading"
    return None


def main() -> int:
    targets = set(MAKE_TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    found = []
    files = links = 0
    for path in markdown_files():
        files += 1
        text = path.read_text(encoding="utf-8")
        prose = FENCE.sub("", text)
        unquoted = CODE_SPAN.sub("", prose)
        for target in LINK.findall(unquoted) + REFERENCE.findall(unquoted):
            links += 1
            if problem := broken_link(path, target):
                found.append(f"{path.relative_to(ROOT)} {problem}.")
        calls = MAKE_IN_SPAN.findall(prose)
        for fence in FENCE.finditer(text):
            calls += MAKE_IN_FENCE.findall(fence.group())
        for call in calls:
            if call not in targets:
                found.append(f"{path.relative_to(ROOT)} names `make {call}`, which does not exist.")
    if files == 0 or links == 0:
        found.append(f"{files} files with {links} links were seen: the check looked at nothing.")
    for sentence in found:
        print(sentence, file=sys.stderr)
    if not found:
        print(f"documentation: {files} files, {links} links lead somewhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
