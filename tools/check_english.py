"""Report prose that breaks the English rules of CONTRIBUTING.md. `make check` runs it; a clean result proves little.

Usage: check_english.py PATH...; exit code 1 if there is a problem.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

OPENING = re.compile(r"(What|Which|How|Of|Those|Whether|Where|Who)\b")
PHRASE = re.compile(
    r"\b((is|are|was|were|be|been)\stold|(?<!instead\s)of\sbefore|of\snow|men[d](s|ed|ing)?|told\sapart)\b"
)


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line number and text of every docstring, attribute docstrings included."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str):
                    yield statement.lineno, text.strip()


def problems(path: Path) -> Iterator[str]:
    """Yield a line for every problem in a Python or Markdown file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for line, docstring in docstrings(ast.parse(text)):
            if OPENING.match(docstring):
                yield f"{path}:{line}: docstring opens with {docstring.split()[0]!r}; use a noun or an imperative verb"
    for number, line in enumerate(text.splitlines(), start=1):
        if phrase := PHRASE.search(line):
            yield f"{path}:{number}: {phrase[0]!r}; use the plain technical term"


def main() -> None:
    """Check all files below the paths on the command line."""
    tops = [Path(word) for word in sys.argv[1:]]
    files = [file for top in tops for file in ([top] if top.is_file() else sorted(top.rglob("*")))]
    found = [line for file in files if file.suffix in (".py", ".md") for line in problems(file)]
    print("\n".join(found) if found else f"English: {len(files)} files checked")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
