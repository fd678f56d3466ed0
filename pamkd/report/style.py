"""The page's style sheet (ASCII). Series colours are Okabe and Ito's palette, darkened or lightened for contrast."""

from __future__ import annotations

from pamkd.report.charts import LEVELS

LIGHT = ("#0072b2", "#c65102", "#00805a", "#a3468a", "#8a6d00", "#3f4a56")
DARK = ("#56b4e9", "#f0913a", "#2fc49a", "#e093c3", "#e6cf4a", "#b9c4cf")
HEAT_LIGHT = ("#f4f7fb", "#8fb8de", "#1d5fa8", "#0a2250")  # low to high
HEAT_DARK = ("#12202f", "#1f5a8f", "#58a9e0", "#e8f4ff")


def style() -> str:
    return BASE + _colors(LIGHT, HEAT_LIGHT) + "@media(prefers-color-scheme:dark){" + DARK_BASE + _colors(DARK, HEAT_DARK) + "}"


def _colors(series: tuple[str, ...], heat: tuple[str, ...]) -> str:
    rules = [f".c{i}{{--c:{color}}}" for i, color in enumerate(series)]
    rules += [f".h{i}{{--h:{_between(heat, i / (LEVELS - 1))}}}" for i in range(LEVELS)]
    return "".join(rules)


def _between(stops: tuple[str, ...], share: float) -> str:
    place = share * (len(stops) - 1)
    i = min(int(place), len(stops) - 2)
    a, b = (tuple(int(stop[k : k + 2], 16) for k in (1, 3, 5)) for stop in stops[i : i + 2])
    return "#" + "".join(f"{round(x + (y - x) * (place - i)):02x}" for x, y in zip(a, b, strict=True))


BASE = """
:root{color-scheme:light dark;--ink:#17202a;--soft:#566270;--page:#f5f6f8;--card:#fff;--rule:#dde2e8;--accent:#0072b2;
--note:#fff6df;--note-rule:#e0a100}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%;scroll-padding-top:1rem}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main,header,footer{max-width:1240px;margin:0 auto;padding:0 16px}
header{padding-top:28px}
header p{max-width:none}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.4rem 0 .8rem;padding-bottom:.3rem;border-bottom:1px solid var(--rule)}
h3{font-size:1rem;margin:1.4rem 0 .6rem}
p{margin:.4rem 0 .8rem;max-width:75ch;overflow-wrap:anywhere}
.soft,footer{color:var(--soft)}
footer{font-size:.875rem;padding-top:2rem;padding-bottom:2.5rem}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;margin:.9rem 0 0}
a{color:var(--accent)}
nav a{padding:.25rem 0}
.notice{background:var(--note);border-left:4px solid var(--note-rule);border-radius:6px;padding:.7rem 1rem;margin:1.2rem 0}
.notice ul{margin:.2rem 0;padding-left:1.2rem}
.notice li{overflow-wrap:anywhere}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px;margin:1.2rem 0}
.facts div,figure{background:var(--card);border:1px solid var(--rule);border-radius:10px;margin:0}
.facts div{padding:10px 12px}
.facts dt{color:var(--soft);font-size:.875rem}
.facts dd{margin:0;font-size:1.1rem;font-weight:650;font-variant-numeric:tabular-nums;line-height:1.35}
.facts div:first-child{grid-column:span 2}
.facts div:first-child dd{font-size:1.6rem}
.facts dd.more,.facts div:first-child dd.more{font-size:.8125rem;font-weight:400;color:var(--soft)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,350px),1fr));gap:14px;align-items:start}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,350px),480px));gap:14px;align-items:start}
figure{padding:12px 12px 10px;min-width:0}
figcaption{line-height:1.35;margin-bottom:.3rem}
figcaption span{display:block;color:var(--soft);font-size:.8125rem}
figure svg{display:block;width:100%;height:auto}
figure .legend svg{display:inline-block;width:26px;height:12px;flex:none}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem .9rem;margin:.2rem 0;padding:0;font-size:.8125rem}
.legend li{display:flex;align-items:center;gap:.35rem}
.none{color:var(--soft)}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
svg .unit{fill:var(--soft)}
svg .small{font-size:11px;fill:var(--soft)}
svg .strong{font-weight:650;font-size:13px}
svg .kept{font-weight:650}
svg .name{font-size:13px}
.rule,.axis,.mark,.line,.wire{fill:none}
.rule{stroke:var(--rule);stroke-width:1}
.axis{stroke:var(--soft)}
.mark{stroke:var(--soft);stroke-dasharray:3 3}
.line{stroke:var(--c);stroke-width:2;stroke-linejoin:round}
.faint{stroke-width:1;opacity:.35}
.dot{fill:var(--c)}
.wire{stroke:var(--c);stroke-width:1.8}
.state,.op,.out{fill:var(--card);stroke:var(--c);stroke-width:2}
.op{stroke-width:1.4}
.out{stroke:var(--ink);stroke-width:1.4}
.empty{fill:none;stroke:var(--rule)}
.frame{fill:none;stroke:var(--accent);stroke-width:1.6}
.heat path{stroke:var(--h);fill:none}
rect[class^=h]{fill:var(--h)}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:10px;margin:.6rem 0 1rem;max-width:max-content}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:8px 12px 2px;font-weight:600}
th,td{padding:6px 12px;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
tbody tr:last-child>*{border-bottom:0}
thead th{color:var(--soft);font-weight:600;font-size:.8125rem}
tbody th{font-weight:500}
.numeric td,.numeric th{white-space:nowrap}
.numeric td,.numeric thead th:not(:first-child){text-align:right}
.plain{min-width:0}
.plain th,.plain td{padding:3px 12px}
.plain td{overflow-wrap:anywhere;min-width:8rem}
code,pre{font:.8125rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:10px 12px;
white-space:pre-wrap;overflow-wrap:anywhere;margin:.6rem 0}
details{margin:.8rem 0}
summary{cursor:pointer;padding:.4rem 0;font-weight:600}
details>.grid,details>.pair{margin-top:.5rem}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
@media print{.notice,figure,tr{break-inside:avoid}}
"""
DARK_BASE = (
    ":root{--ink:#e6ebf0;--soft:#a0acb8;--page:#0f141a;--card:#171e26;--rule:#2b3641;--accent:#6bbcf0;--note:#2b2410;--note-rule:#d9a21b}"
)
