// How a report looks: one style sheet, light and dark, and the colours of depth.
#pragma once

#include <algorithm>
#include <array>
#include <cstdio>
#include <string>
#include <string_view>

namespace moeskip::report {

inline constexpr std::string_view style_sheet = R"css(
:root{color-scheme:light dark;--bg:#fbfaf8;--card:#fff;--fg:#1c1f24;--soft:#4d545e;--muted:#7a828d;--line:#e4e2dd;
--grid:#eceae6;--accent:#3457b8;--over:#c8501e;--under:#2f6fc4;--good:#2b8a4b;--mix:24%}
@media (prefers-color-scheme:dark){:root{--bg:#14161a;--card:#1b1e24;--fg:#e8e9eb;--soft:#b6bcc5;--muted:#8a929d;
--line:#2d3138;--grid:#262a31;--accent:#8fabff;--over:#f08a55;--under:#6fa8f5;--good:#6cc98b;--mix:38%}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Inter,Roboto,
"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1120px;margin:0 auto;padding:48px 28px 64px}
header p.kicker{margin:0 0 6px;color:var(--muted);font-size:13px;letter-spacing:.08em;text-transform:uppercase}
h1{font-size:34px;line-height:1.15;letter-spacing:-.02em;margin:0 0 10px;font-weight:680;overflow-wrap:anywhere}
h2{font-size:22px;letter-spacing:-.01em;margin:56px 0 6px;font-weight:650}
h3{font-size:14.5px;margin:0 0 2px;font-weight:620}
p{margin:0 0 14px;color:var(--soft);max-width:76ch}
.facts{display:flex;flex-wrap:wrap;gap:4px 22px;margin:0;padding:0;list-style:none;font-size:14px;color:var(--soft)}
.facts b{color:var(--muted);font-weight:500;margin-right:6px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;margin:28px 0 0}
.tile,figure,.strip{background:var(--card);border:1px solid var(--line);border-radius:12px}
.tile{padding:14px 16px}
.tile b{display:block;font-size:26px;line-height:1.2;letter-spacing:-.02em;font-weight:650}
.tile b small{font-size:14px;font-weight:500;color:var(--muted);letter-spacing:0}
.tile span{font-size:13px;color:var(--soft)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:16px;margin:18px 0}
figure{margin:0;padding:16px 18px 12px;overflow-x:auto;min-width:0;display:flex;flex-direction:column}
figure>svg{margin-top:auto}figure table{margin-bottom:auto}
figure.wide{grid-column:1/-1}
figcaption{font-size:13px;line-height:1.45;color:var(--muted);margin:0 0 10px;max-width:88ch}
svg{display:block;max-width:100%;height:auto;font:12px system-ui,-apple-system,"Segoe UI",Inter,Roboto,Arial,sans-serif}
svg text{fill:var(--soft);font-variant-numeric:tabular-nums}
svg text.code{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:var(--fg)}svg text.m{fill:var(--muted)}svg text.v{fill:var(--fg);font-weight:600}
svg text.mark{fill:#fff;font-weight:700}
.multiples{display:flex;flex-wrap:wrap;gap:14px 18px}
.grid{stroke:var(--grid)}.axis{stroke:var(--line)}.ideal{stroke:var(--muted);stroke-dasharray:3 4}
.over{fill:var(--over)}.under{fill:var(--under)}.acc{fill:var(--accent)}.cell{fill:var(--grid)}
.chips{display:grid;grid-template-columns:repeat(auto-fill,minmax(225px,1fr));gap:3px 20px;font-size:13px;margin:2px 0 12px}
.chips div{display:flex;gap:3px;align-items:baseline;overflow:hidden}
.chips b{min-width:26px;text-align:right;margin-right:5px;color:var(--muted);font-weight:500}
.chips code{background:var(--grid);border-radius:4px;padding:0 5px;white-space:pre}
.accl{stroke:var(--accent);fill:none;stroke-width:2}
.strip{padding:16px 18px;margin:14px 0}
.strip pre{margin:10px 0 0;white-space:pre-wrap;overflow-wrap:anywhere;font:13.5px/1.95 ui-monospace,"SF Mono",
"Cascadia Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}
.strip pre .p{color:var(--muted)}
.t{background:color-mix(in srgb,var(--c) var(--mix),transparent);box-shadow:inset 0 -2px 0 var(--c);padding:2px 0}
.full{background:none;box-shadow:inset 0 -1px 0 var(--c)}
.d{border-radius:3px}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:13px;color:var(--soft);margin:4px 0 0}
.legend+.multiples{margin-top:12px}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;background:var(--c);margin-right:6px}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:right;padding:6px 8px;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--muted);font-weight:500;font-size:13px}
th:first-child,td:first-child{text-align:left;padding-left:0}td:last-child,th:last-child{padding-right:0}
tr:last-child td{border-bottom:0}
footer{margin-top:56px;padding-top:16px;border-top:1px solid var(--line);font-size:13px;color:var(--muted)}
footer p{color:var(--muted);font-size:13px}code{font:.92em ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
@media print{main{padding:0}figure,.tile,.strip{break-inside:avoid}}
)css";

/// "#14919b": from amber, the first layers, through green and blue to violet, the full depth. Each is dark enough for
/// lines on white and light enough for lines on black.
inline std::string depth_colour(int exit_layer, int layers) {
  constexpr std::array<std::array<int, 3>, 5> stops{
      {{221, 148, 20}, {104, 162, 52}, {22, 150, 152}, {62, 112, 214}, {136, 84, 206}}};
  const double x =
      layers > 1 ? std::clamp(double(exit_layer - 1) / (layers - 1), 0.0, 1.0) * double(stops.size() - 1) : 0;
  const std::size_t i = std::min(std::size_t(x), stops.size() - 2);
  const auto mixed = [&](std::size_t c) {
    return int(stops[i][c] + (x - double(i)) * (stops[i + 1][c] - stops[i][c]) + 0.5);
  };
  char out[64];
  std::snprintf(out, sizeof out, "#%02x%02x%02x", mixed(0), mixed(1), mixed(2));
  return out;
}

}  // namespace moeskip::report
