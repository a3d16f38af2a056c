#!/usr/bin/env python3
"""What a program wrote to a terminal, as an SVG picture: the characters and colours, nothing added.

    script -qfc './run demo --corpus FILE' typescript
    tools/terminal_to_svg.py typescript OUT.svg [--from TEXT] [--to TEXT] [--columns N]

--from and --to: the first line that is shown, and the first that no longer is; each is one that contains the text. Knows what
the demo uses: colours of the 256-colour palette, bold, cursor up, erase line.
"""
import argparse
import html
import re


def palette(n):
    if n >= 232:
        return f"#{8 + 10 * (n - 232):02x}" + f"{8 + 10 * (n - 232):02x}" * 2
    if n >= 16:
        level = lambda v: 0 if v == 0 else 55 + 40 * v
        n -= 16
        return "#" + "".join(f"{level(v):02x}" for v in (n // 36, n // 6 % 6, n % 6))
    return ["#000000", "#cd3131", "#0dbc79", "#e5e510", "#2472c8", "#bc3fbc", "#11a8cd", "#e5e5e5"][n % 8]


def screen(text):
    """Lines of (character, colour, bold)."""
    lines, row, col, colour, bold = [[]], 0, 0, None, False
    for token in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[^\x1b]|\x1b", text, re.S):
        if token == "\n":
            row, col = row + 1, 0
            if row == len(lines):
                lines.append([])
        elif token == "\r":
            col = 0
        elif token.startswith("\x1b["):
            what, body = token[-1], token[2:-1]
            if what == "A":
                row = max(0, row - int(body or 1))
            elif what == "K":
                del lines[row][col:]
            elif what == "m":
                codes = [int(c or 0) for c in body.split(";")]
                if codes[:2] == [38, 5]:
                    colour = palette(codes[2])
                elif 39 in codes or 0 in codes:
                    colour = None
                bold = (bold or 1 in codes) and not (22 in codes or 0 in codes)
        elif token >= " ":
            line = lines[row]
            line.extend([(" ", None, False)] * (col - len(line)))
            line[col:col + 1] = [(token, colour, bold)]
            col += 1
    return lines


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("typescript")
    args.add_argument("out")
    args.add_argument("--from", dest="first")
    args.add_argument("--to", dest="last")
    args.add_argument("--columns", type=int, default=0)
    args = args.parse_args()
    lines = screen(open(args.typescript, encoding="utf-8", errors="replace", newline="").read())
    lines = [line for line in lines if not "".join(c for c, _, _ in line).startswith(("Script started", "Script done"))]
    find = lambda text, default: next((i for i, l in enumerate(lines) if text and text in "".join(c for c, _, _ in l)), default)
    first = find(args.first, 0)
    lines = lines[first:]
    lines = lines[:find(args.last, len(lines))]
    while lines and not lines[-1]:
        lines.pop()
    wide, high, pad = 8.4, 19, 18
    columns = args.columns or max(len(line) for line in lines)
    width, height = columns * wide + 2 * pad, len(lines) * high + 2 * pad
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
           f'height="{height:.0f}"><rect width="100%" height="100%" rx="10" fill="#14161a"/>'
           f'<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,DejaVu Sans Mono,monospace" font-size="14" '
           f'fill="#e2e4e8">']
    for row, line in enumerate(lines):
        col = 0
        while col < len(line):
            end = col
            while end < len(line) and line[end][1:] == line[col][1:]:
                end += 1
            text = "".join(c for c, _, _ in line[col:end])
            if text.strip():
                style = (f' fill="{line[col][1]}"' if line[col][1] else "") + (' font-weight="700"' if line[col][2] else "")
                out.append(f'<text x="{pad + col * wide:.1f}" y="{pad + (row + 0.75) * high:.1f}" '
                           f'textLength="{len(text) * wide:.1f}" lengthAdjust="spacingAndGlyphs"{style}>'
                           f"{html.escape(text).replace(' ', chr(0xa0))}</text>")
            col = end
    out.append("</g></svg>\n")
    open(args.out, "w").write("\n".join(out))


if __name__ == "__main__":
    main()
