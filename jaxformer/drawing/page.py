"""One HTML file that needs nothing else: no network, no other file, and no text of it taken for markup."""

import html
import json
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1b1b1f, #ececf1); --back: light-dark(#fff, #16161a);
        --line: light-dark(#d5d5dd, #3a3a44); --accent: light-dark(#1f5fbf, #7fb2ff); }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 1.5rem; }
h1 { font-size: 1.2rem; font-weight: 600; } a { color: var(--accent); }
select, button, input { font: inherit; color: inherit; background: var(--back); border: 1px solid var(--line);
        border-radius: 4px; padding: .15rem .4rem; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
<script>
const DATA = {told};
{script}
</script>
</body>
</html>
"""


def page(title: str, body: str, script: str, data: Any, style: str = "") -> str:
    """HTML with `body`, whose `script` finds `data` (whatever JSON can say) as `DATA`.

    `body`, `script` and `style` are ours; what comes from a user (texts, names) belongs into `data`, and from there
    into the page by textContent. The page may load nothing from anywhere: its own policy forbids it.
    """
    # Else a text with "</script>" in it would end the script.
    told = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    return TEMPLATE.format(
        title=html.escape(title), policy=POLICY, style=STYLE + style, body=body, told=told, script=script
    )
