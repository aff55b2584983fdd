"""Shared by the benchmarks: throughput inside of Trainer, variants in turns, ratios with their spread."""

import statistics
import time

import torch
from transformers import TrainerCallback

PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense, by the vendor's data sheets


class SteadyRate(TrainerCallback):
    """Samples/s from the end of step `warm_up` to the last one, with the GPU's queue empty at both ends."""

    def __init__(self, samples_per_step, warm_up):
        self.samples_per_step, self.warm_up = samples_per_step, warm_up
        self.rate = None

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.warm_up:
            torch.cuda.synchronize()
            self.begin = time.perf_counter()
        if state.global_step == state.max_steps:
            torch.cuda.synchronize()
            self.rate = (state.global_step - self.warm_up) * self.samples_per_step / (time.perf_counter() - self.begin)


def in_turns(variants, rounds, seconds=float("inf")):
    """{name: rates} of {name: function that returns a rate}, A B C A B C; no new round after so many seconds.

    A variant that runs out of memory is left out of later rounds, and named.
    """
    begin, rates = time.perf_counter(), {name: [] for name in variants}
    failed = {}
    for number in range(rounds):
        for name, run in variants.items():
            if name in failed or (number and time.perf_counter() - begin > seconds):
                continue
            try:
                rates[name].append(run())
            except torch.cuda.OutOfMemoryError as error:
                failed[name] = str(error).splitlines()[0][:200]
                print(f"{name}: {failed[name]}", flush=True)
                continue
            finally:
                torch.cuda.empty_cache()
            print(f"{name:44} {rates[name][-1]:12,.1f} /s   ({time.perf_counter() - begin:.0f} s)", flush=True)
    return {name: values for name, values in rates.items() if values}, failed


def ratios(rates, baseline):
    """{other: (median, lowest, highest)} of the baseline's rate over each other's, by round."""
    found = {}
    for name, values in rates.items():
        if name == baseline:
            continue
        pairs = [mine / other for mine, other in zip(rates[baseline], values)]
        found[name] = (statistics.median(pairs), min(pairs), max(pairs))
    return found


def report(rates, baseline, flops_per_sample, unit):
    """The table as text, and its values for JSON. Ratios are the baseline's rate over each other's."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    peak = next((value for part, value in PEAK_BF16.items() if part in name), None)
    lines = [f"{'':44}{unit:>14}{'spread':>20}{'MFU':>8}{'ratio':>10}"]
    against = ratios(rates, baseline)
    for variant, values in rates.items():
        middle = statistics.median(values)
        mfu = f"{100 * middle * flops_per_sample / peak:.1f} %" if peak and flops_per_sample else ""
        ratio = f"{against[variant][0]:.3f} x" if variant in against else ""
        spread = f"{min(values):,.0f} - {max(values):,.0f}"
        lines.append(f"{variant:44}{middle:>14,.1f}{spread:>20}{mfu:>8}{ratio:>10}")
    about = {
        "device": name,
        "torch": torch.__version__,
        "rates": rates,
        "ratios": {key: dict(zip(("median", "lowest", "highest"), value)) for key, value in against.items()},
        "flops_per_sample": flops_per_sample,
    }
    return "\n".join(lines), about
