# SPDX-License-Identifier: BSD-3-Clause
"""Forecasts of the bouncing dot, and dynamics retrained on a new frequency.

One JSON line per seed, then one with the medians and the worst::

    OMP_NUM_THREADS=1 python benchmarks/bouncing_dot.py --seeds 5

Fitted on 5,000 frames; a forecast of 100 frames follows 100 observed ones that are held out, and
its mean squared error stands beside that of repeating the last period, of the mean frame, and of
the noise alone, averaged over 20 starts in the period. Then `refit_dynamics` gets 5,000 frames of
1.5 times the frequency, and the dominant frequency of a forecast of the new motion is compared.
"""

import argparse
import json
import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sksvae import SVAELinearDynamics
from sksvae.datasets import make_bouncing_dot

PERIOD = 80 / 3
N_FRAMES, N_OBSERVED, N_AHEAD = 5000, 100, 100


def held_out(n_sequences, period, seed):
    """Sequences of new noise that start all over the period."""
    return np.stack(
        [
            make_bouncing_dot(
                N_OBSERVED + N_AHEAD,
                period=period,
                phase=k / n_sequences,
                random_state=1000 * (seed + 1) + k,
            )[0]
            for k in range(n_sequences)
        ]
    )


def last_period(observed):
    """The frames of 80 frames ago: three periods, which are the least whole number of frames."""
    return np.concatenate([observed[:, -80:], observed[:, -80:-60]], axis=1)


def dominant_frequency(frames):
    """Cycles per frame, where the spectrum summed over pixels is largest."""
    n = 64 * len(frames)  # padded, for a fine grid
    window = np.hanning(len(frames))[:, None]
    spectrum = np.abs(np.fft.rfft((frames - frames.mean(0)) * window, n, axis=0)) ** 2
    return float(np.fft.rfftfreq(n)[spectrum.sum(1).argmax()])


def measure(seed, arguments):
    """Fit once and measure."""
    X, _ = make_bouncing_dot(N_FRAMES, random_state=seed)
    model = SVAELinearDynamics(
        arguments.latent_dim, max_iter=arguments.max_iter, random_state=seed
    ).set_params(**json.loads(arguments.settings))
    start = time.perf_counter()
    model.fit(X)
    fit_s = time.perf_counter() - start
    new = held_out(20, PERIOD, seed)
    observed, future = np.split(new, [N_OBSERVED], axis=1)
    mean, std = model.forecast(observed, N_AHEAD)
    row = {
        "mse": np.mean((mean - future) ** 2),
        "mse_last_period": np.mean((last_period(observed) - future) ** 2),
        "mse_mean_frame": np.mean((X.mean(0) - future) ** 2),
        "coverage": np.mean(np.abs(future - mean) <= 1.645 * std),
        "fit_s": fit_s,
        "lower_bound": model.lower_bound_,
        "spectral_radius": model.spectral_radius_,
    }
    faster, _ = make_bouncing_dot(N_FRAMES, period=PERIOD / 1.5, random_state=500 + seed)
    start = time.perf_counter()
    model.refit_dynamics(faster)
    refit_s = time.perf_counter() - start
    observed, future = np.split(held_out(20, PERIOD / 1.5, seed), [N_OBSERVED], axis=1)
    mean, _ = model.forecast(observed, N_AHEAD)
    frequencies = np.array([dominant_frequency(frames) for frames in mean])
    row |= {
        "refit_mse": np.mean((mean - future) ** 2),
        "refit_frequency_error": np.max(np.abs(frequencies * PERIOD / 1.5 - 1)),
        "refit_share_of_fit": refit_s / fit_s,
    }
    return {name: round(float(value), 5) for name, value in row.items()} | {"n_iter": model.n_iter_}


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--latent-dim", type=int, default=8)
    parser.add_argument("--max-iter", type=int, default=100)
    parser.add_argument("--settings", default="{}", help="more of them, as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows = []
    for seed in range(arguments.seeds):
        rows.append({"seed": seed} | measure(seed, arguments))
        print(json.dumps(rows[-1]), flush=True)
    out = {"seeds": len(rows)}
    measures = ("mse", "mse_last_period", "mse_mean_frame", "fit_s")
    for name in (*measures, "refit_mse", "refit_frequency_error", "refit_share_of_fit"):
        values = [row[name] for row in rows]
        out[name] = {"median": round(float(np.median(values)), 5), "worst": max(values)}
    print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main()
