#!/bin/sh
# format.sh <source folder>: clang-format 14 finds nothing to change. Exit status 77: there is no clang-format 14.
cd "$1" || exit 1
for clang_format in clang-format-14 clang-format; do
  "$clang_format" --version 2>/dev/null | grep -q 'version 14\.' && break
  clang_format=
done
[ "$clang_format" ] || { echo "skipped: clang-format 14 is not installed"; exit 77; }

files=$(find include tests examples bench -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh')
[ "$files" ] || { echo "no sources under $1"; exit 1; }
unformatted=0
for file in $files; do
  "$clang_format" --dry-run -Werror "$file" 2>/dev/null || { echo "to do: clang-format -i $file"; unformatted=1; }
done
exit $unformatted
