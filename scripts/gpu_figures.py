"""Short figures from the output of the parts of ``gpu_check.py``."""

from __future__ import annotations

import re

from part_runner import last_line


def pytest_figure(log: str) -> str:
    """Return the counts in the last line of pytest's output."""
    return last_line(log).strip('= ')


def pytest_skipped(status: int, log: str) -> bool:
    """Return whether pytest selected no test, or skipped all of them."""
    return status == 5 or (status == 0 and 'passed' not in last_line(log))


def detect_figure(log: str) -> str:
    """Return for each precision the detections that were found again and the largest differences."""
    rows = re.findall(r', (\w+) compared with the CPU: (\S+) found, box (\S+) px, score (\S+?),', log)
    return comparison_figure(log, [(name, f'{found} ({box} px, {score})') for name, found, box, score in rows])


def update_figure(log: str) -> str:
    """Return the relative error of the losses in each precision."""
    return comparison_figure(log, re.findall(r', (\w+) compared with the CPU: losses within (\S+),', log))


def comparison_figure(log: str, rows: list[tuple[str, str]]) -> str:
    """Return the figures of precisions, and the precisions without figures."""
    others = re.findall(r'GPU \d+, (\w+): (failed|not supported)', log)
    return ', '.join(f'{name} {figure}' for name, figure in [*rows, *others])


def precision_figure(log: str) -> str:
    """Return the mask AP of each precision in percent."""
    rows = re.findall(r'^(\w+) +[\d.]+ +\S+ +\S+ +([\d.]+) ', log, re.MULTILINE)
    return ', '.join(f'{name} {ap}' for name, ap in rows)


def sanitizer_figure(log: str) -> str:
    """Return the summary of compute-sanitizer."""
    return re.findall(r'=+ ((?:ERROR|RACECHECK) SUMMARY: .*)', log)[-1]


def benchmark_figure(log: str) -> str:
    """Return the median time of a prediction and how many times as long the peer takes."""
    total = re.findall(r'^total +([\d.]+)', log, re.MULTILINE)[0]
    peer = re.search(r'the peer takes ([\d.]+) times', log)
    return f'{1e3 * float(total):.1f} ms' + (f', peer x {peer[1]}' if peer else '')


def kernels_figure(log: str) -> str:
    """Return the fractions of a copy's bandwidth that RoIAlign and NMS reach."""
    rows = re.findall(r'^(RoIAlign|NMS).*?([\d.]+)%$', log, re.MULTILINE)
    names = dict.fromkeys(name for name, _ in rows)
    return ', '.join(f'{name} {"/".join(share for other, share in rows if other == name)} %' for name in names)


def training_speed_figure(log: str) -> str:
    """Return for each batch size the median time of an iteration, and how many times as long the peer takes."""
    rows = re.findall(r'^(\d+) +this +([\d.]+)', log, re.MULTILINE)
    ratios = [f', peer x {ratio}' for ratio in re.findall(r'the peer takes ([\d.]+) times', log)]
    ratios += [''] * (len(rows) - len(ratios))
    return '; '.join(f'{n}: {1e3 * float(s):.0f} ms{ratio}' for (n, s), ratio in zip(rows, ratios, strict=False))


def training_figure(log: str) -> str:
    """Return the first and the last loss of a training."""
    rows = re.findall(r'^ +(\d+) +\d+ +[\d.e+-]+ +(\S+)', log, re.MULTILINE)
    return f'loss {rows[0][1]} to {rows[-1][1]} after {rows[-1][0]} iterations'


def doctor_figure(log: str) -> str:
    """Return the lines of the GPU and its libraries, or the first error."""
    errors = re.findall(r'^error: +(.*)', log, re.MULTILINE)
    return '; '.join(errors[:1] or re.findall(r'^(?:GPU|CUDA|cuDNN) +(.*)', log, re.MULTILINE))


def photo_figure(log: str) -> str:
    """Return the losses of a training, and its mask AP."""
    row = re.findall(r'^ +\d+ +\d+ +[\d.e+-]+ +.*', log, re.MULTILINE)[-1].split()
    titles = re.split(r' {2,}', re.findall(r'^iteration .*', log, re.MULTILINE)[0].strip())
    # The columns of the AP are filled in rows with an evaluation only.
    has_ap = 'mask AP' in titles and len(row) == len(titles)
    return training_figure(log) + (f', mask AP {row[titles.index("mask AP")]}' if has_ap else '')


def new_size_figure(log: str) -> str:
    """Return the median times of the iterations with a size, and those of the causes in the first one."""
    rows = re.findall(r'^(\d+) +([\d.]+) +(.*)', log, re.MULTILINE)
    causes = re.findall(r'([\d.]+) \((\d+)\)', rows[0][2])
    names = ('plans', 'compilation', 'graphs', 'memory')
    split = ', '.join(f'{name} {ms}' for name, (ms, _) in zip(names, causes, strict=True))
    return f'{" ".join(ms for _, ms, _ in rows)} ms; first: {split}'


def server_figure(log: str) -> str:
    """Return the images per second of single predictions and of the server."""
    rows = re.findall(r'^(detect|server, .*?) {2,}([\d.]+) ', log, re.MULTILINE)
    return ', '.join(f'{name} {rate}' for name, rate in rows) + (' images/s' if rows else '')
