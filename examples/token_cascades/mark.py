"""Mark the facts of a corpus: `marks`, spans of characters of each text.

python mark.py IN.jsonl OUT.jsonl
"""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from plan import FACTS


def main() -> None:
    """Copy the records, with marks."""
    source, out = map(Path, sys.argv[1:3])
    staged = out.with_suffix(".part")
    with staged.open("w", encoding="utf-8") as file:
        for line in source.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            text = record["text"] if "text" in record else record["response"]
            spans = [list(found.span()) for found in re.finditer(FACTS, text)]
            file.write(json.dumps({**record, "marks": spans}, ensure_ascii=False) + "\n")
    staged.rename(out)


if __name__ == "__main__":
    main()
