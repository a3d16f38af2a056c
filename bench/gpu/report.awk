# report.awk -v md=FILE -v jsonl=FILE: makes the report of run.sh out of its logs, given one behind the other on stdin.
# Of each stage the last run counts, but one that could not begin (status 77) replaces nothing.
# A program's result is a line {"what": "...", "value": 1, "unit": "..."}, or {"what": "...", "failed": "..."}.

function commit_run(status, seconds,   i, n) {
  if (stage == "") return
  if (status == 77 && (stage in state) && state[stage] != 77) { stage = ""; return }
  for (i in value) { split(i, part, SUBSEP); if (part[1] == stage) { delete value[i]; delete unit[i] } }
  for (i in reason) { split(i, part, SUBSEP); if (part[1] == stage) delete reason[i] }
  missed[stage] = ""
  for (i = 1; i <= pending; ++i) {
    if (pending_reason[i] != "") missed[stage] = pending_what[i] ": " pending_reason[i] # the last says most
    if (pending_reason[i] != "") reason[stage, pending_what[i]] = pending_reason[i]
    else { value[stage, pending_what[i]] = pending_value[i]; unit[stage, pending_what[i]] = pending_unit[i] }
    order[stage, i] = pending_what[i]
  }
  lines[stage] = pending
  state[stage] = status; took[stage] = seconds; last_line[stage] = last; passed[stage] = oks; broken[stage] = complaint
  about[stage] = remark
  when[stage] = begin[3]; of_commit[stage] = begin[4]; of_card[stage] = begin[5]; of_toolkit[stage] = begin[6]
  stage = ""
}

/^== begin \| / {
  commit_run("killed", "")
  n = split($0, begin, / \| /)
  stage = begin[2]; pending = oks = 0; last = complaint = remark = ""
  next
}
/^== end \| / { split($0, end, / \| /); if (end[2] == stage) commit_run(end[3], end[4]); next }
stage == "" { next }
/^\{"what": ".*\}$/ {
  split($0, quoted, "\"")
  at = 0 # what is told anew stands where it stood
  for (i = 1; i <= pending; ++i) if (pending_what[i] == quoted[4]) at = i
  if (!at) at = ++pending
  pending_what[at] = quoted[4]; pending_reason[at] = ""
  if (quoted[6] == "failed") pending_reason[at] = quoted[8] == "" ? "no reason given" : quoted[8]
  else { pending_value[at] = substr(quoted[7], 3) + 0; pending_unit[at] = quoted[10] }
  next
}
{
  if ($0 != "") last = $0
  if (/^ok /) ++oks
  if (/^kernels for .*; /) remark = $0 # what build was asked for
  if (complaint == "" && tolower($0) ~ /failed|error|undefined reference/) complaint = $0
}

function out(text) { print text >md }
function cell(text) { gsub(/\|/, "/", text); return length(text) > 220 ? substr(text, 1, 217) "..." : text }
function known(s, what) { return (s, what) in value }
function get(s, what) { return known(s, what) ? value[s, what] : 0 }
function larger(a, b) { return a > b ? a : b }
function number(x) { return sprintf(x >= 1000 ? "%.0f" : x >= 100 ? "%.1f" : x >= 10 ? "%.2f" : "%.3f", x) }
function percent(x) { return sprintf("%.1f %%", 100 * x) }

function result_of(s) {
  if (!(s in state)) return "**not run**"
  before = broken[s] != "" ? "; before that: " cell(broken[s]) : ""
  if (state[s] == "killed") return "**stopped** before its end: what it had printed counts" before
  if (state[s] == 77) return "**not done**: " cell(last_line[s])
  if (state[s] == 124 || state[s] == 137) return "**stopped at its limit** after " took[s] " s" before
  if (state[s] != 0)
    return "**failed**: " cell(missed[s] != "" ? missed[s] : broken[s] != "" ? broken[s] : last_line[s])
  return "done in " took[s] " s" (passed[s] ? ": " passed[s] " checks held" : "") (about[s] != "" ? ": " about[s] : "")
}
# Why there is no such line.
function why(s, what) {
  if ((s, what) in reason) return cell(reason[s, what])
  if (!(s in state)) return s " was not run"
  if (state[s] == 77) return s " was not done"
  if (state[s] != 0) return s " did not get so far"
  return s " does not say"
}

# A row of the table of what it must show. holds: 1, 0, or "" where nothing was measured.
function row(what, wanted, got, holds,   verdict) {
  verdict = holds == "" ? "not measured" : holds ? "held" : "**missed**"
  ++count[holds == "" ? "open" : holds ? "held" : "missed"]
  out("| " what " | " wanted " | " got " | " verdict " |")
  gsub(/"/, "'", got); gsub(/\*\*/, "", got); gsub(/\*\*/, "", verdict)
  printf "{\"date\": \"%s\", \"commit\": \"%s\", \"gpu\": \"%s\", ", latest, with_commit, on_card >jsonl
  printf "\"what\": \"%s\", \"wanted\": \"%s\", ", what, wanted >jsonl
  printf "\"got\": \"%s\", \"verdict\": \"%s\"}\n", got, verdict >jsonl
}
function clean(s, what) {
  row(what, "clean", result_of(s), (s in state) && state[s] !~ /^(77|124|137|killed)$/ ? state[s] == 0 : "")
}
function faster(what, ours, s, theirs, fastest, more,   rate) {
  rate = larger(get(s, theirs), fastest)
  if (!ours) row(what, "faster", "our decoding: " why("time:decode", "loop: decode, context 512"), "")
  else if (!known(s, theirs)) row(what, "faster", number(ours) " tokens/s; theirs: " why(s, theirs) more, "")
  else row(what, "faster", number(ours) " against " number(rate) " tokens/s, " sprintf("%.2f", ours / rate) " times",
           ours > rate)
}
function compare(s, measured,   i, told) {
  if (!known(s, measured)) return row(measured, "beside the predicted one", why(s, measured), "")
  told = number(get(s, measured)) " " unit[s, measured]
  for (i = 1; i <= lines[s]; ++i)
    if (index(order[s, i], base_of(measured) ", predicted by ") == 1 && known(s, order[s, i]))
      told = told ", predicted " substr(order[s, i], length(base_of(measured)) + 13) " " number(get(s, order[s, i]))
  out("| " measured " | beside the predicted one | " told " | measured |")
}
# Predictions do not depend on who runs the loop, but those of OLMoE are told with it.
function base_of(measured) {
  if (measured !~ /^(loop|kernels): (self-spec|early exit at)/) return measured
  return substr(measured, index(measured, ": ") + 2)
}

END {
  commit_run("killed", "")
  D = "time:decode"; P = "time:prefill"; T = "time:train"; S = "time:skip"; L = "peer:limits"
  n = split("build check memcheck racecheck " D " " P " " T " " S " " L " peer:transformers peer:triton peer:training",
            stages, " ")
  out("# The CUDA backend on a GPU\n")
  for (i = 1; i <= n; ++i)
    if ((s = stages[i]) in state) {
      told = of_card[s] ", " of_toolkit[s] ", commit " of_commit[s]
      if (!(told in seen)) { seen[told] = 1; by = by (by == "" ? "" : "; ") told; ++different }
      if (when[s] > latest) { latest = when[s]; with_commit = of_commit[s]; on_card = of_card[s] }
    }
  out("Written by bench/gpu/run.sh from runs up to " latest ": " by ".")
  if (different > 1) out("\n**The stages were not run with one commit on one machine:** the table says which.")
  if (!("check" in state) || state["check"] != 0)
    out("\n**`check` has not passed, so no timing below is known to be that of a right result.**")

  own_read = get(D, "read"); torch_read = get(L, "peer torch read")
  apart = own_read && torch_read ? own_read / torch_read : 1
  if (apart > 1.15 || apart < 1 / 1.15)
    out("\n**The two read rates differ by more than 15 %: " number(own_read) " GB/s by our kernel, " \
        number(torch_read) " by PyTorch's. Do not trust the roofline before one knows why.**")

  out("\n## What was run\n\n| stage | result | when |" (different > 1 ? " with |" : "") "\n|---|---|---|" \
      (different > 1 ? "---|" : ""))
  for (i = 1; i <= n; ++i) {
    s = stages[i]
    told = different > 1 ? " " of_card[s] ", " of_toolkit[s] ", " of_commit[s] " |" : ""
    out("| " s " | " result_of(s) " | " when[s] " |" told)
  }

  out("\n## What it must show\n\n| what | wanted | got | verdict |\n|---|---|---|---|")
  clean("check", "every op against double, rows keep their bits, tokens, ten training steps")
  clean("memcheck", "compute-sanitizer memcheck"); clean("racecheck", "compute-sanitizer racecheck")

  # The floor is computed from the larger reading: a slow one would flatter.
  if (!own_read || !torch_read)
    row("own read rate against PyTorch's", "within 15 %", own_read ? why(L, "peer torch read") : why(D, "read"), "")
  else row("own read rate against PyTorch's", "within 15 %", number(own_read) " against " number(torch_read) " GB/s, " \
           sprintf("%.2f", apart) " times", apart >= 1 / 1.15 && apart <= 1.15)
  slower = own_read ? own_read / larger(own_read, torch_read) : 1

  best = best_share = 0
  split("loop kernels graphs", ways, " ")
  for (i = 1; i <= 3; ++i)
    if (get(D, ways[i] ": decode, context 512") > best) {
      best = get(D, ways[i] ": decode, context 512"); best_way = ways[i]
      best_share = slower * get(D, best_way ": decode, share of it, keys in bf16")
      float_share = slower * get(D, best_way ": decode, share of it, keys in f32")
    }
  what = "decode at context 512: share of the roofline, keys counted in bf16"
  if (!best_share) row(what, "70 %", why(D, "loop: decode, context 512"), "")
  else row(what, "70 %", percent(best_share) " (" best_way ", " number(best) " tokens/s; with keys in f32, " \
           "as they are, " percent(float_share) ")", best_share >= 0.70)
  compiled = "peer transformers decode, compiled with a static cache"
  fastest = get("peer:transformers", "peer transformers decode, any way")
  faster("decode against transformers, compiled with a static cache", best, "peer:transformers", compiled,
         fastest, fastest ? " (its fastest way of all: " number(fastest) ")" : "")
  faster("decode against Triton's fused mixture in a CUDA graph", best, "peer:triton", "peer Triton decode", 0, "")

  own = "cuBLAS bf16 8192 x 8192 x 8192"
  product = larger(get(P, own), get(L, "peer cuBLAS bf16 matmul"))
  what = "prefill of 2,048 tokens: share of cuBLAS's bf16 rate"
  rate = get(P, "prefill 2048, rate")
  if (!rate) row(what, "45 %", why(P, "prefill 2048, rate"), "")
  else if (!product) row(what, "45 %", number(rate) " TFLOP/s; cuBLAS: " why(P, own), "")
  else row(what, "45 %", percent(rate / product) " (" number(rate) " of " number(product) " TFLOP/s; in the same run " \
           (known(P, own) ? number(get(P, own)) : "none") ")", rate / product >= 0.45)
  split("2 4 8", lengths, " ")
  over_decode = ", over its bytes at decode's rate"
  for (i = 1; i <= 3; ++i) {
    over = 0
    for (j = 2; j <= 3; ++j) {
      x = get(D, ways[j] ": verify " lengths[i] ", over its bytes at the read rate")
      if (x && (!over || x < over)) { over = x; way = ways[j] }
    }
    what = "verify of " lengths[i] " tokens: time over that of its bytes at the rate of the fastest decode"
    if (!over || !best_share) {
      row(what, "at most 1.15", why(D, "kernels: verify " lengths[i] ", over its bytes at the read rate"), "")
      continue
    }
    over /= slower
    row(what, "at most 1.15", number(over * best_share) " (" way "; at the card's read rate " number(over) \
        "; against decode by " way " " number(get(D, way ": verify " lengths[i] over_decode)) ")",
        over * best_share <= 1.15)
  }

  product = larger(get(T, own), get(L, "peer cuBLAS bf16 matmul"))
  rate = get(T, "train, rate")
  nominal = of_card[T] ~ /H[12]00/ && of_card[T] !~ /PCIe|NVL/ ? 989 : of_card[T] ~ /A100/ ? 312 : 0
  what = "training: FLOP utilisation, of the measured bf16 rate"
  if (!rate) row(what, "25 %", why(T, "train, rate"), "")
  else if (!product) row(what, "25 %", number(rate) " TFLOP/s; cuBLAS: " why(T, own), "")
  else row(what, "25 %", percent(rate / product) " (" number(rate) " of " number(product) " TFLOP/s" \
           (nominal ? "; " percent(rate / nominal) " of the nominal " nominal : "") ")", rate / product >= 0.25)
  ours = get(T, "train"); what = "training against PyTorch's grouped_mm"
  theirs = "peer torch train, grouped_mm"
  if (!ours) row(what, "faster", why(T, "train"), "")
  else if (!known("peer:training", theirs))
    row(what, "faster", number(ours) " tokens/s; theirs: " why("peer:training", theirs), "")
  else row(what, "faster", number(ours) " against " number(get("peer:training", theirs)) " tokens/s, " \
           sprintf("%.2f", ours / get("peer:training", theirs)) " times", ours > get("peer:training", theirs))

  split("4 8 12", lengths, " ")
  for (i = 1; i <= 3; ++i) compare(D, "loop: early exit after " lengths[i] " of 16 layers")
  split("1 2 4", lengths, " ")
  for (i = 1; i <= 3; ++i) compare(D, "loop: a round of " lengths[i] " drafts from exit 4")
  split("loop kernels", ways, " ")
  for (i = 1; i <= 2; ++i) {
    compare(S, ways[i] ": early exit at 0.9")
    compare(S, ways[i] ": self-speculation, exit 2, 2 drafts")
  }
  out("\n" count["held"] + 0 " held, " count["missed"] + 0 " missed, " count["open"] + 0 " not measured. " \
      "Early exit and drafts: at OLMoE's size on random weights, what a token or a round costs; `early exit at` and " \
      "`self-speculation` on a trained model, which is small.")

  for (i = 1; i <= n; ++i) {
    s = stages[i]
    if (!lines[s]) continue
    out("\n## " s "\n\n~~~")
    for (j = 1; j <= lines[s]; ++j) {
      what = order[s, j]
      head = sprintf("{\"date\": \"%s\", \"commit\": \"%s\", \"gpu\": \"%s\", \"stage\": \"%s\", \"what\": \"%s\", ",
                     when[s], of_commit[s], of_card[s], s, what)
      if ((s, what) in reason) {
        out(sprintf("%-78s failed: %s", what, reason[s, what]))
        print head "\"failed\": \"" reason[s, what] "\"}" >jsonl
      } else {
        out(sprintf("%-78s %12.6g %s", what, value[s, what], unit[s, what]))
        printf "%s\"value\": %.6g, \"unit\": \"%s\"}\n", head, value[s, what], unit[s, what] >jsonl
      }
    }
    out("~~~")
  }
}
