# SPDX-License-Identifier: BSD-3-Clause
"""Imputation of two real series beside interpolation and a classical state space model.

One JSON line per series, seed and model, then one with the medians and the worst of each model::

    OMP_NUM_THREADS=1 python benchmarks/series.py --seeds 5

The series are those of statsmodels: `elnino`, monthly sea surface temperatures, and `co2`, weekly
concentrations with gaps. Of each, 20 % of the steps are removed, in stretches of a quarter to one
and a half years; errors are those on what was removed, in the units of the series, and coverage is
that of nominal 90 % bands. The number of latents and hidden layers of the SVAE are those with the
best score on the last quarter of the first seed's series, when fitted to the rest, as ``--choose``
shows; what was removed only measures.

The structural models are the `UnobservedComponents` of statsmodels with a trigonometric season, and
a level or a local linear trend, once as they are and once with an autoregression of order one; both
are told the season. One more is not, as the SVAE is not: a stochastic cycle whose period is found.
"""

import argparse
import itertools
import json
import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from statsmodels.datasets import co2, elnino
from statsmodels.tools.sm_exceptions import ConvergenceWarning as ClassicalConvergenceWarning
from statsmodels.tsa.statespace.structural import UnobservedComponents

from sksvae import SVAELinearDynamics

SHARE = 0.2  # of the steps are removed
BAND = (0.05, 0.95)
PERIODS = {"elnino": 12, "co2": 52}
CLASSICAL = {
    "elnino": {"level": "local level", "freq_seasonal": [{"period": 12, "harmonics": 6}]},
    "co2": {
        "level": "local linear trend",
        "freq_seasonal": [{"period": 365.25 / 7, "harmonics": 4}],
    },
}
SVAE = {
    "elnino": {"latent_dim": 6, "sequence_length": 732},
    "co2": {"latent_dim": 10, "hidden_layer_sizes": (), "sequence_length": 2284},
}


def load(name):
    """Return a series in the order of time."""
    if name == "elnino":
        return elnino.load_pandas().data.set_index("YEAR").to_numpy().ravel()
    return co2.load_pandas().data["co2"].to_numpy()


def removed_steps(n_steps, period, seed):
    """Mask of stretches, none of which touches another, or the first or last step."""
    rng = np.random.default_rng(seed)
    removed = np.zeros(n_steps, dtype=bool)
    while removed.sum() < SHARE * n_steps:
        length = rng.integers(period // 4, 3 * period // 2 + 1)
        start = rng.integers(1, n_steps - length)
        if not removed[start - 1 : start + length + 1].any():
            removed[start : start + length] = True
    return removed


def interpolated(x):
    """Straight lines between the observed steps around a gap."""
    step, known = np.arange(len(x)), ~np.isnan(x)
    return np.interp(step, step[known], x[known])


def seasonal_naive(x, period):
    """The nearest earlier value of the same season, or later one where there is none."""
    filled = x.copy()
    for step in np.flatnonzero(np.isnan(x)):
        season = np.r_[step % period : step : period][::-1], np.r_[step : len(x) : period]
        same = x[np.concatenate(season)]
        filled[step] = same[~np.isnan(same)][0]
    return filled


def svae(x, name, seed, arguments):
    """Expected values, bands, and what the fit says of itself."""
    settings = SVAE[name] | json.loads(arguments.settings)
    model = SVAELinearDynamics(rows="consecutive", random_state=seed, **settings)
    start = time.perf_counter()
    model.fit(x[:, None])
    figures = {
        "fit_s": round(time.perf_counter() - start, 1),
        "lower_bound": round(model.lower_bound_, 4),
        "score": round(model.score(x[:, None]), 4),
        "n_iter": model.n_iter_,
        "spectral_radius": round(model.spectral_radius_, 4),
    }
    draws = model.impute(x[:, None], n_draws=arguments.n_draws)[..., 0]
    return model.impute(x[:, None])[:, 0], np.quantile(draws, BAND, axis=0), figures


def classical(x, name, autoregressive):
    """Smoothed predictions of a structural model, their bands, and what its fit says."""
    model = UnobservedComponents(x, autoregressive=1 if autoregressive else None, **CLASSICAL[name])
    start = time.perf_counter()
    fitted = model.fit(disp=False, maxiter=200)
    figures = {
        "fit_s": round(time.perf_counter() - start, 1),
        "score": round(fitted.llf / np.sum(~np.isnan(x)), 4),
        "bic": round(fitted.bic, 1),
    }
    return *smoothed(model, fitted), figures


def cyclic(x, name):
    """Stochastic cycle of two steps to two years: the best likelihood over starts of its period."""
    longest = 2 * PERIODS[name]
    model = UnobservedComponents(
        x,
        level=CLASSICAL[name]["level"],
        cycle=True,
        stochastic_cycle=True,
        damped_cycle=True,
        cycle_period_bounds=(2, longest),
    )
    where = model.param_names.index("frequency.cycle")
    fits = []
    start = time.perf_counter()
    for period in np.geomspace(4, longest / 1.1, 6):
        params = model.start_params
        params[where] = 2 * np.pi / period
        fits.append(model.fit(params, disp=False, maxiter=200))
    fitted = max(fits, key=lambda fit: fit.llf)
    return *smoothed(model, fitted), {
        "fit_s": round(time.perf_counter() - start, 1),
        "score": round(fitted.llf / np.sum(~np.isnan(x)), 4),
        "period": round(float(2 * np.pi / fitted.params[where]), 2),
    }


def smoothed(model, fitted):
    """Means and bands of the observations."""
    design, results = model.ssm["design"][0], fitted.smoother_results
    mean = design @ results.smoothed_state
    variance = np.einsum("i,ijt,j->t", design, results.smoothed_state_cov, design)
    half = 1.645 * np.sqrt(variance + model.ssm["obs_cov"][0, 0])
    return mean, np.stack([mean - half, mean + half])


def measure(x, removed, found):
    """Error on what was removed, and how much of it the bands hold."""
    mean, band, figures = found
    measured = removed & ~np.isnan(x)
    error = np.sqrt(np.mean((mean - x)[measured] ** 2))
    row = {"rmse": round(float(error), 4)}
    if band is not None:
        inside = (band[0] <= x) & (x <= band[1])
        row["coverage"] = round(float(inside[measured].mean()), 4)
    return row | figures


def choose(name):
    """Score on the last quarter, by the number of latents and hidden layers."""
    x = load(name)
    x = np.where(removed_steps(len(x), PERIODS[name], 0), np.nan, x)[:, None]
    n_fitted = 3 * len(x) // 4
    for hidden, latent_dim in itertools.product([(), (100,)], [4, 6, 8, 10, 12]):
        settings = {"hidden_layer_sizes": hidden, "latent_dim": latent_dim}
        model = SVAELinearDynamics(
            rows="consecutive", random_state=0, sequence_length=len(x), **settings
        ).fit(x[:n_fitted])
        # Given everything before: the score of the last quarter alone would begin from nothing.
        score = model.score_samples(x)[n_fitted:].sum() / np.sum(~np.isnan(x[n_fitted:]))
        print(json.dumps({"series": name, **settings, "score": round(float(score), 4)}), flush=True)


def models(x, name, seed, arguments):
    """Yield the models by name, each with what it says of a series with gaps."""
    yield "linear interpolation", (interpolated(x), None, {})
    yield "seasonal naive", (seasonal_naive(x, PERIODS[name]), None, {})
    yield "UnobservedComponents", classical(x, name, autoregressive=False)
    yield "UnobservedComponents, AR(1)", classical(x, name, autoregressive=True)
    yield "UnobservedComponents, cycle", cyclic(x, name)
    yield "SVAELinearDynamics", svae(x, name, seed, arguments)


def summary(rows):
    """Median and worst of each figure."""
    out = {"seeds": len(rows)}
    for name, worst in (("rmse", max), ("fit_s", max)):
        values = [row[name] for row in rows if name in row]
        if values:
            out[name] = {"median": round(float(np.median(values)), 4), "worst": worst(values)}
    coverage = [row["coverage"] for row in rows if "coverage" in row]
    if coverage:
        out["coverage"] = {"least": min(coverage), "most": max(coverage)}
    return out


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--series", nargs="+", default=list(PERIODS), choices=list(PERIODS))
    parser.add_argument("--n-draws", type=int, default=400)
    parser.add_argument("--settings", default="{}", help="of the SVAE, as JSON")
    parser.add_argument("--choose", action="store_true", help="the settings of the SVAE only")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.simplefilter("ignore", ClassicalConvergenceWarning)
    for name in arguments.series:
        if arguments.choose:
            choose(name)
            continue
        x, rows = load(name), {}
        for seed in range(arguments.seeds):
            removed = removed_steps(len(x), PERIODS[name], seed)
            with_gaps = np.where(removed, np.nan, x)
            for model, found in models(with_gaps, name, seed, arguments):
                row = {"series": name, "seed": seed, "model": model}
                row |= measure(x, removed, found)
                rows.setdefault(model, []).append(row)
                print(json.dumps(row), flush=True)
        for model, found in rows.items():
            print(json.dumps({"series": name, "model": model, **summary(found)}), flush=True)


if __name__ == "__main__":
    main()
