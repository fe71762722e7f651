"""The style of the page: calm, the same on every machine's own letters, light, dark and on paper."""

from sdpo_plugin.report.palette import DARK, LIGHT

_LIGHT = f"""
  --page: #ffffff; --ink: #1c2024; --soft: #5f6770; --line: #e1e4e8; --wash: #f6f7f9;
  --accent: #1f65ad; --base: #8a9099; --warm: #b35806; --cell-ink: {LIGHT.ink}; --hatch: #e3e6ea;"""
_DARK = f"""
  --page: #14171b; --ink: #e6e8eb; --soft: #9aa3ad; --line: #2c3238; --wash: #1b1f24;
  --accent: #6eb0f0; --base: #858d97; --warm: #e59a52; --cell-ink: {DARK.ink}; --hatch: #2b3036;"""

STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
* {{ box-sizing: border-box; }}
body {{
  margin: 0 auto; max-width: 62rem; padding: 3rem 1.5rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums lining-nums; -webkit-text-size-adjust: 100%;
}}
h1 {{ font-size: 1.7rem; line-height: 1.25; font-weight: 650; letter-spacing: -0.01em; margin: 0; }}
h2 {{ font-size: 1.15rem; font-weight: 650; margin: 0 0 .9rem; }}
p, ul {{ margin: 0 0 1rem; max-width: 46rem; }}
section {{ margin-top: 2.8rem; }}
a {{ color: var(--accent); text-decoration-thickness: 1px; text-underline-offset: 2px; }}
sub {{ font-size: .72em; line-height: 0; }}
code {{ font: .92em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }}
.facts {{ color: var(--soft); margin: .5rem 0 0; max-width: none; }}
.state {{ color: var(--ink); }}
.note {{ color: var(--soft); font-size: .9rem; }}
.remarks ul {{ list-style: none; padding: 0; margin: 0; max-width: 52rem; }}
.remarks li {{
  border-left: 3px solid var(--warm); padding: .1rem 0 .1rem .9rem; margin-bottom: .7rem; overflow-wrap: anywhere;
}}
.remarks p {{ border-left: 3px solid var(--base); padding-left: .9rem; margin: 0; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .875rem; line-height: 1.35; }}
th, td {{ padding: .38rem .9rem .38rem 0; text-align: left; vertical-align: baseline; }}
tr > :last-child {{ padding-right: 0; }}
thead th {{ color: var(--soft); font-weight: 500; border-bottom: 1px solid var(--line); vertical-align: bottom; }}
tbody tr + tr > * {{ border-top: 1px solid var(--line); }}
td:first-child {{ white-space: nowrap; }}
.num {{ text-align: right; white-space: nowrap; }}
th.num {{ white-space: normal; }}
section > .wide {{ margin-bottom: 1.4rem; }}
.matrices {{ display: flex; flex-wrap: wrap; gap: 1.6rem 2.6rem; margin-bottom: 1.8rem; }}
figure {{ margin: 0 0 1.6rem; min-width: 0; }}
.matrix {{ margin: 0; max-width: 100%; }}
figcaption {{ font-weight: 600; font-size: .95rem; margin-bottom: .35rem; }}
figcaption span {{ color: var(--soft); font-weight: 400; }}
.heat {{ border-collapse: separate; border-spacing: 2px; }}
.heat th, .heat td {{ border: 0 !important; padding: .34rem .6rem; }}
.heat thead th {{
  font-size: .8rem; text-align: right; max-width: 9rem; min-width: 4.6rem; overflow-wrap: anywhere; padding-left: .2rem;
}}
.heat thead small {{ display: block; font-size: .92em; opacity: .85; }}
.heat tbody th {{ font-weight: 500; padding-left: 2px; white-space: nowrap; }}
.heat tbody td {{ text-align: right; background: var(--light); color: var(--cell-ink); border-radius: 3px; }}
.heat tbody td.none {{ background: repeating-linear-gradient(-45deg, var(--hatch) 0 2px, transparent 2px 7px); }}
.heat .none::after {{ content: "\\a0"; }}
.none span {{ position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }}
svg {{ display: block; width: 100%; height: auto; min-width: 34rem; max-width: 52rem; }}
svg text {{ font-size: 11.5px; fill: var(--soft); }}
svg .name, svg .mean {{ font-size: 12.5px; fill: var(--ink); }}
svg .mean.base {{ fill: var(--soft); }}
.grid {{ stroke: var(--line); stroke-width: 1; }}
.rule {{ stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 3; }}
.step {{ stroke: var(--base); stroke-width: 1; opacity: .55; }}
.raw, .curve {{ fill: none; stroke: var(--accent); stroke-linejoin: round; stroke-linecap: round; }}
.raw {{ stroke-width: 1; opacity: .35; }}
.curve {{ stroke-width: 2; }}
line.reference {{ stroke: var(--accent); stroke-width: 2.5; stroke-linecap: round; }}
circle.reference {{ fill: var(--accent); }}
line.base {{ stroke: var(--base); stroke-width: 2.5; stroke-linecap: round; }}
circle.base {{ fill: var(--page); stroke: var(--base); stroke-width: 2; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.4rem; margin: 0; font-size: .9rem; }}
dt {{ font-weight: 600; }}
dl + p {{ margin-top: .8rem; }}
dd {{ margin: 0; color: var(--soft); max-width: 44rem; }}
footer {{
  margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft); font-size: .85rem;
}}
footer p {{ margin: 0 0 .4rem; max-width: none; }}
@media (max-width: 40rem) {{
  body {{ padding: 1.6rem 1rem 3rem; }}
  dl {{ grid-template-columns: 1fr; }}
  dd {{ margin-bottom: .4rem; }}
}}
@media screen and (prefers-color-scheme: dark) {{ .heat tbody td:not(.none) {{ background: var(--dark); }} }}
@media print {{
  @page {{ margin: 14mm; }}
  :root {{ color-scheme: light; {_LIGHT} }}
  body {{ max-width: none; padding: 0; font-size: 10pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
  table {{ font-size: 8pt; }}
  .wide {{ overflow: visible; }}
  section {{ margin-top: 1.4rem; }}
  h2 {{ break-after: avoid; }}
  figure, tr, li, dl {{ break-inside: avoid; }}
  a {{ color: inherit; }}
}}
"""
