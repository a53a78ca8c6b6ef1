"""The table of docs/planning.md: configurations of configs/scale compiled for slices that nobody here owns.

    python benchmarks/plan.py [--only NAME] [--again]

Needs the TPU compiler (pip install "jaxformer[tpu]"), no TPU and no network. Each plan is `jaxformer plan CONFIG
--topology NAME --json OPTIONS` in a process of its own, a few minutes on two cores; what was planned already is read
from benchmarks/results/plan.json, but for --again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "plan.json", ROOT / "docs" / "planning.md"
PLANS = (
    ("llama_1b", "v6e:1x1", ""),
    ("llama_1b", "v5e:4x4", "--rows 32 --accumulate 1"),
    ("t5_xl", "v5e:4x4", ""),
    ("llama_8b", "v5e:16x16", ""),
    ("llama_8b", "v6e:16x16", ""),
    ("llama_8b", "v5p:4x4x4", "--rows 128"),
    ("llama_70b", "v5p:4x4x8", ""),
    ("llama_70b", "v6e:16x16", "--rows 256"),
    ("llama_70b", "v5e:16x16", "--rows 256 --length 2048"),
)
WEAK = (
    ("llama_8b", "v6e:2x4", "--rows 8"),
    ("llama_8b", "v6e:8x8", "--rows 64"),
    ("llama_8b", "v6e:16x16", ""),
)
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="plans whose line contains this")
    parser.add_argument("--again", action="store_true", help="plan anew what was planned already")
    options = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for plan in dict.fromkeys(PLANS + WEAK):
        line = told(*plan)
        if options.only in line and (options.again or line not in found):
            print(line, flush=True)
            found[line] = planned(*plan)
            RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    write({plan: found[told(*plan)] for plan in PLANS + WEAK if told(*plan) in found})


def told(config, topology, options):
    return f"jaxformer plan configs/scale/{config}.py --topology {topology} {options}".strip()


def planned(config, topology, options):
    words = [f"configs/scale/{config}.py", "--topology", topology, "--json", "--no-changes", *options.split()]
    done = subprocess.run(
        [sys.executable, "-m", "jaxformer", "plan", *words], cwd=ROOT, capture_output=True, text=True
    )
    if not done.stdout:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def write(found):
    """Put both tables between their marks in the page."""
    page = PAGE.read_text()
    for mark, lines in (("plans", table(found)), ("weak scaling", scaling(found))):
        begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->"
        before, _, rest = page.partition(begin)
        page = before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2]
    PAGE.write_text(page)


def table(found):
    yield (
        "| configuration | slice | chips | rows x length | peak of memory, GiB | fits | PFLOPs a step |"
        " links, GB a chip | step at best, s | MFU at best |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for (config, topology, options), plan in found.items():
        if (config, topology, options) in PLANS:
            yield row(config, topology, options, plan)


def row(config, topology, options, plan):
    memory, room = plan["memory"], plan["room"]
    name = f"{config} `{options}`" if options else config
    start = f"| {name} | {topology} | {plan['devices']} | {plan['rows']} x {plan['length']} |"
    if plan["refused"]:
        return f"{start} | no: {plan['refused']} | | | | |"
    used = f"{(memory['peak'] + memory['program']) / GIB:.1f} of {room / GIB:.1f}"
    line = plan["roofline"]
    moved = sum(each["bytes"] for each in plan["collectives"]) / 1e9
    best, worst = line["utilization"]
    return (
        f"{start} {used} | {'yes' if plan['fits'] else 'no'} | {plan['flops']['model'] / 1e15:,.2f} | {moved:,.1f} |"
        f" {line['hidden']:.2f} to {line['one_by_one']:.2f} | {best:.0%} to {worst:.0%} |"
    )


def scaling(found):
    yield "| slice | chips | rows | links, GB a chip | links, s | a step one by one, s | share of communication |"
    yield "|---|---|---|---|---|---|---|"
    for plan in WEAK:
        if plan in found and not found[plan]["refused"]:
            one = found[plan]
            line, moved = one["roofline"], sum(each["bytes"] for each in one["collectives"]) / 1e9
            yield (
                f"| {one['target']} | {one['devices']} | {one['rows']} | {moved:.1f} | {line['links']:.3f} |"
                f" {line['one_by_one']:.3f} | {line['communication']:.0%} |"
            )


if __name__ == "__main__":
    main()
