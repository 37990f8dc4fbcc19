"""Count words in many files: `map` over the files, results in their order.

    python examples/first_steps/count_words.py [FOLDER]

Without a folder it reads the licences and notes that lie beside Python's own modules.
"""

import sys
import sysconfig
from collections import Counter
from pathlib import Path

import manyhands as mh


def count_words(path: Path) -> Counter[str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    return Counter(word.lower() for word in text.split() if word.isalpha())


folder = Path(sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_path("stdlib"))
files = sorted(folder.glob("*.txt")) + sorted(folder.glob("*.py"))

total: Counter[str] = Counter()
for words in mh.map(count_words, files):
    total += words

print(f"{sum(total.values())} words in {len(files)} files")
for word, count in total.most_common(3):
    print(f"{count:8}  {word}")
