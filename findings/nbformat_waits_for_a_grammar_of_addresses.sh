#!/usr/bin/env bash
# nbformat 5.11.1 with jsonschema 4.26.0 and rfc3987-syntax 1.1.0, which JupyterLab installs: importing nbformat builds a
# parser for international web addresses.
#
# What one would expect: that reading a notebook, whose schema names no format at all, waits for no check of formats, or
# that a check is made ready when it is first asked for. What happens: nbformat imports jsonschema, which imports
# rfc3987-syntax if it is there, and that compiles an Earley grammar with lark as it is imported. Every process that
# imports nbformat (a tool that runs notebooks, each worker of a test suite) takes about ten times as long to do so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nbformat==5.11.1 jsonschema==4.26.0 rfc3987-syntax==1.1.0 lark==1.3.1
cat >"$folder/try.py" <<'PYTHON'
import re
import sys
import time

if sys.argv[1] == "without":
    sys.modules["rfc3987_syntax"] = None  # as if it were not installed
started = time.perf_counter()
import nbformat

seconds = time.perf_counter() - started
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("a text")])
nbformat.validate(notebook)
formats = re.findall(r"'format': '\w+'", str(nbformat.validator.get_validator(4, 5)._schema))
parser = getattr(sys.modules.get("rfc3987_syntax.syntax_helpers"), "syntax_parser", None)
print(f"nbformat {nbformat.__version__} {sys.argv[1]}: {seconds:.2f} s, {type(parser).__name__}, formats asked for: {len(formats)}")
print(f"{seconds:.3f}", file=sys.stderr)
PYTHON
"$folder/venv/bin/python" "$folder/try.py" with >/dev/null 2>&1  # so that all is compiled and in memory
slow=$("$folder/venv/bin/python" "$folder/try.py" with 2>"$folder/slow")
quick=$("$folder/venv/bin/python" "$folder/try.py" without 2>"$folder/quick")
printf '%s\n%s\n' "$slow" "$quick"
grep -q "Lark, formats asked for: 0" <<<"$slow"
grep -q "NoneType, formats asked for: 0" <<<"$quick"
awk -v slow="$(cat "$folder/slow")" -v quick="$(cat "$folder/quick")" 'BEGIN { exit !(slow > 2 * quick) }'
