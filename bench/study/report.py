#!/usr/bin/env python3
"""Tables (Markdown, on stdout) and plots (SVG, beside the results) of what ./run study measured.

    bench/study/report.py docs/results

Reads every NAME-SEED.json of the folder. Where a recipe has several seeds, tables show the mean and, behind it, half of the
range. Plots follow the reader's light or dark theme.
"""
import json
import pathlib
import sys

COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f"]  # Okabe and Ito
ORDER = ["baseline", "skip", "expert_dropout", "everything", "gated", "half_depth", "dense", "all_moe", "every_4th", "draft"]


def read(folder):
    runs = {}
    for path in sorted(folder.glob("*-*.json")):
        run = json.loads(path.read_text())
        runs.setdefault(run["name"], []).append(run)
    place = {name: i for i, name in enumerate(ORDER)}
    return dict(sorted(runs.items(), key=lambda r: (place.get(r[0], len(ORDER)), r[0])))


def mean(values):
    return sum(values) / len(values)


def cell(values, digits=3):
    values = [v for v in values if v is not None]
    if not values:
        return ""
    half = (max(values) - min(values)) / 2
    return f"{mean(values):.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def exits(run, text="valid"):
    return {int(e): bits for e, bits in run[text]["bits_per_byte"].items()}


def routing(run, text, field, index=None):
    part = run["generated"] if text == "generated" else run.get(text, {}).get("routing")
    if not part:
        return None
    return part[field] if index is None else part[field][index]


def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row + [""] * (len(head) - len(row))) + " |")
    print()


def quality(runs):
    depths = sorted({e for group in runs.values() for run in group for e in exits(run)})
    print("### Bits per byte by exit\n")
    rows = []
    for name, group in runs.items():
        by_exit = [[exits(run).get(e) for run in group] for e in depths]
        other = [exits(run, "other").get(max(exits(run))) for run in group if "other" in run]
        rows.append([name, str(len(group)), f"{group[0]['weights'] / 1e6:.1f}", f"{group[0]['active_weights'] / 1e6:.1f}"]
                    + [cell(values) for values in by_exit] + [cell(other)])
    table(["recipe", "seeds", "weights, M", "active, M"] + [f"@{e}" for e in depths] + ["other text, full depth"], rows)


def utilisation(runs):
    print("### Experts\n")
    rows = []
    for name, group in runs.items():
        if not routing(group[0], "valid", "growth"):
            continue
        get = lambda *where: [routing(run, *where) for run in group]
        rows.append([name, cell(get("valid", "max_violation"), 2), cell(get("other", "max_violation"), 2),
                     cell(get("valid", "entropy")), str(max(get("valid", "dead"))), cell(get("generated", "distinct", 0), 2),
                     cell(get("generated", "distinct", 1), 2), cell(get("generated", "distinct", 2), 2),
                     cell(get("generated", "growth", 1), 2), cell(get("generated", "growth_aligned", 1), 2)])
    table(["recipe", "MaxVio", "other text", "entropy", "dead", "distinct of 2", "of 4", "of 8 tokens", "growth of 4",
           "aligned"], rows)


def removal(runs):
    print("### Bits per byte without some experts\n")
    rows = []
    for name, group in runs.items():
        if "removed" not in group[0]:
            continue
        full = [exits(run)[max(exits(run))] for run in group]
        experts, removed = int(group[0]["config"]["sizes.experts"]), group[0]["removed"]
        rows.append([name, cell(full)] + [f"{cell([run['removed'][str(n)] for run in group])} (without {n} of {experts})"
                                          if str(n) in removed else "" for n in (experts // 8, experts // 4, experts // 2)])
    table(["recipe", "all", "an eighth removed", "a quarter", "a half"], rows)


def weights_read(config, distinct):
    """Of a MoE layer by tokens that visit so many distinct experts; a shared one is read once."""
    of = lambda field: int(config["sizes." + field])
    dim, ffn, groups = of("dim"), of("ffn"), of("kv_heads") or of("heads")
    shared = (of("shared_ffn") or ffn) if config.get("shared_expert", "none") != "none" else 0
    return (2 * (of("heads") + groups) * (dim // of("heads")) + of("experts") + 3 * (ffn * distinct + shared)) * dim


def predicted(run, acceptance=0.85, leave=2, drafted=3):
    """Speed-up over plain decoding by weights read: a draft of three tokens that leaves after layer 2, verified together."""
    config, layers, tokens = run["config"], int(run["config"]["sizes.layers"]), drafted + 1
    one = weights_read(config, experts_per_token(config))
    four = weights_read(config, routing(run, "generated", "distinct", 1))
    head = int(config["sizes.vocab"]) * int(config["sizes.dim"])
    made = sum(acceptance ** i for i in range(tokens))
    return made * (layers * one + head) / (tokens * leave * one + drafted * head + (layers - leave) * four + head)


def experts_per_token(config):
    return int(config["router"].split("top_k<")[1].split(">")[0])


def locality(runs):
    """Recipes of the baseline's shape: what shared choices cost in bits, and what they buy in bytes."""
    bits = lambda group: mean([exits(run)[max(exits(run))] for run in group])
    if "baseline" not in runs or "dense" not in runs:
        return
    base, dense = bits(runs["baseline"]), bits(runs["dense"])
    print("### What routing locality costs and buys\n")
    print("Speed-ups are predicted by weights read: three tokens drafted from layer 2, 85 % of them accepted, verified together; the\n"
          "same for all recipes, whether or not they have exits. Below zero: worse than no experts at all.\n")
    rows = []
    for name, group in runs.items():
        config = group[0]["config"]
        if (not routing(group[0], "valid", "growth") or config["sizes.moe_every"] != "1" or config["sizes.layers"] != "12"
                or weights_read(config, int(config["sizes.experts"])) < 0.9 * weights_read(runs["baseline"][0]["config"], 16)):
            continue
        get = lambda *where: [routing(run, *where) for run in group]
        rows.append((bits(group), [name, cell([exits(run)[12] for run in group]), f"{100 * (bits(group) / base - 1):+.1f} %",
                     f"{100 * (dense - bits(group)) / (dense - base):.0f} %", cell(get("generated", "growth", 1), 2),
                     cell(get("generated", "growth_aligned", 1), 2), cell(get("valid", "max_violation"), 2),
                     f"{mean([predicted(run) for run in group]):.2f}"]))
    table(["recipe", "bits per byte", "against the baseline", "of the gain over dense", "growth of 4, generated", "aligned", "MaxVio",
           "predicted speed-up"], [row for _, row in sorted(rows)])


class Plot:
    """Lines over two axes, each with a legend at its right end."""
    W, H, LEFT, RIGHT, TOP, BOTTOM = 720, 380, 60, 190, 30, 45

    def __init__(self, title, x_label, y_label, xs, ys):
        self.title, self.x_label, self.y_label = title, x_label, y_label
        pad = 0.06 * (max(ys) - min(ys) or 1)
        self.x0, self.x1, self.y0, self.y1 = min(xs), max(xs), min(ys) - pad, max(ys) + pad
        self.parts, self.legend = [], []

    def x(self, v):
        return self.LEFT + (v - self.x0) / ((self.x1 - self.x0) or 1) * (self.W - self.LEFT - self.RIGHT)

    def y(self, v):
        return self.H - self.BOTTOM - (v - self.y0) / ((self.y1 - self.y0) or 1) * (self.H - self.TOP - self.BOTTOM)

    def line(self, points, name, colour):
        path = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        self.dots(points, colour)
        self.legend.append((self.y(points[-1][1]), name, colour))

    def dots(self, points, colour):
        self.parts += [f'<circle cx="{self.x(a):.1f}" cy="{self.y(b):.1f}" r="3.5" fill="{colour}"/>' for a, b in points]

    def label(self, a, b, text, colour):
        self.dots([(a, b)], colour)
        self.parts.append(f'<text x="{self.x(a) + 7:.1f}" y="{self.y(b) + 4:.1f}" fill="{colour}">{text}</text>')

    def svg(self, x_ticks, y_ticks):
        out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.W} {self.H}" font-family="sans-serif" font-size="13">',
               '<style>text{fill:#333}.grid{stroke:#ddd}@media(prefers-color-scheme:dark){text{fill:#ccc}.grid{stroke:#444}}</style>',
               f'<text x="{self.LEFT}" y="18" font-weight="bold">{self.title}</text>']
        for v in y_ticks:
            out.append(f'<line class="grid" x1="{self.LEFT}" x2="{self.W - self.RIGHT}" y1="{self.y(v):.1f}" y2="{self.y(v):.1f}"/>')
            out.append(f'<text x="{self.LEFT - 8}" y="{self.y(v) + 4:.1f}" text-anchor="end">{v:g}</text>')
        for v in x_ticks:
            out.append(f'<text x="{self.x(v):.1f}" y="{self.H - self.BOTTOM + 18}" text-anchor="middle">{v:g}</text>')
        middle = (self.LEFT + self.W - self.RIGHT) / 2
        out.append(f'<text x="{middle}" y="{self.H - 8}" text-anchor="middle">{self.x_label}</text>')
        out.append(f'<text transform="translate(16 {self.H / 2}) rotate(-90)" text-anchor="middle">{self.y_label}</text>')
        beyond = 1e9
        for y, name, colour in sorted(self.legend, reverse=True):  # upwards from the lowest, where lines end close together
            beyond = min(y, beyond - 15)
            out.append(f'<text x="{self.W - self.RIGHT + 10}" y="{beyond + 4:.1f}" style="fill:{colour}">{name}</text>')
        return "\n".join(out + self.parts + ["</svg>"]) + "\n"


def ticks(low, high, count=6):
    step = 10 ** len(str(int((high - low) / count))) if high - low > count else 1
    for candidate in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5):
        if (high - low) / candidate <= count:
            step = candidate
            break
    first = int(low / step) * step
    return [v for i in range(count + 3) if low <= (v := round(first + i * step, 6)) <= high]


def plot_exits(runs, folder):
    lines = {name: [(e, mean([exits(run)[e] for run in group])) for e in sorted(exits(group[0]))]
             for name, group in runs.items() if (name in ORDER or name.startswith("every_4th")) and name != "draft"}
    points = [p for line in lines.values() for p in line]
    plot = Plot("What each exit knows", "layers", "bits per byte", [x for x, _ in points], [y for _, y in points])
    for i, (name, line) in enumerate(lines.items()):
        plot.line(line, name, COLOURS[i % len(COLOURS)])
    (folder / "exits.svg").write_text(plot.svg(sorted({x for x, _ in points}), ticks(plot.y0, plot.y1)))


def plot_locality(runs, folder):
    points = {}
    for name, group in runs.items():
        others = name.startswith(("every_4th", "all_moe")) or name in ("half_depth", "draft")  # of other sizes
        if others or not routing(group[0], "valid", "growth"):
            continue
        points[name] = (mean([routing(run, "generated", "distinct", 1) for run in group]),
                        mean([exits(run)[max(exits(run))] for run in group]))
    if not points:
        return
    plot = Plot("Price of locality", "distinct routed experts of 4 tokens, generated text", "bits per byte",
                [x for x, _ in points.values()], [y for _, y in points.values()])
    for i, (name, (x, y)) in enumerate(points.items()):
        plot.label(x, y, name, COLOURS[i % len(COLOURS)])
    (folder / "locality.svg").write_text(plot.svg(ticks(plot.x0, plot.x1), ticks(plot.y0, plot.y1)))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    runs = read(folder)
    if not runs:
        sys.exit(f"{folder}: no NAME-SEED.json there")
    quality(runs)
    utilisation(runs)
    removal(runs)
    locality(runs)
    plot_exits(runs, folder)
    plot_locality(runs, folder)


if __name__ == "__main__":
    main()
