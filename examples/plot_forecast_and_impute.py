# SPDX-License-Identifier: BSD-3-Clause
"""
Forecast and impute real series
===============================

Two series that come with statsmodels: monthly sea surface temperatures off Peru (El Niño), and
weekly concentrations of carbon dioxide at Mauna Loa, which have gaps of their own. NaN marks what
is missing; nothing is resampled or filled beforehand.

:class:`sksvae.SVAELinearDynamics` has three parameters to be set for series such as these. Training
windows as long as the series let it see every period that there is. A weak prior on the transition
matrix (``transition_precision_prior``) lets a season persist for decades: at the default the prior
draws a rotation inwards. And few latents are enough: two for the season, the others for what is
left. The settings below have the better bounds (``lower_bound_``) of those that were tried.
"""

# %%
# Data and models
# ---------------
import os
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from statsmodels.datasets import co2, elnino

from sksvae import SVAELinearDynamics

# A short setting for tests; the default is the full one.
quick = os.environ.get("SKSVAE_EXAMPLE_QUICK") == "1"
if quick:
    warnings.simplefilter("ignore", ConvergenceWarning)

temperatures = elnino.load_pandas().data.set_index("YEAR").to_numpy().ravel()
concentrations = co2.load_pandas().data["co2"].to_numpy()
if quick:
    temperatures, concentrations = temperatures[-120:], concentrations[-420:]
# Values, steps per year, the year in which they end, parameters of the model, title.
SERIES = {
    "elnino": (
        temperatures,
        12,
        2011,
        {"latent_dim": 3, "transition_precision_prior": 0.01, "max_iter": 300},
        "Sea surface temperature (°C)",
    ),
    "co2": (
        concentrations,
        52,
        2002,
        {
            "latent_dim": 4,
            "hidden_layer_sizes": (),
            "transition_precision_prior": 0.001,
            "learning_rate_init": 0.02,
            "max_iter": 500,
        },
        "Carbon dioxide (ppm)",
    ),
}


def new_model(x, parameters):
    """Model for a series."""
    if quick:
        parameters = {**parameters, "max_iter": 2}
    return SVAELinearDynamics(
        rows="consecutive", sequence_length=len(x), random_state=0, **parameters
    )


def rmse(x, estimate, where):
    """Root mean squared error over some steps that were observed."""
    where = where & ~np.isnan(x)
    return np.sqrt(np.mean((estimate - x)[where] ** 2))


def seasonal_naive(x, period):
    """The nearest earlier value of the same season, or later one where there is none."""
    filled = x.copy()
    for step in np.flatnonzero(np.isnan(x)):
        season = np.r_[step % period : step : period][::-1], np.r_[step : len(x) : period]
        same = x[np.concatenate(season)]
        filled[step] = same[~np.isnan(same)][0]
    return filled


# %%
# Forecast
# --------
# Three years are held out. The bands hold 90 % of the values if the model is right.
BAND = 1.645  # standard deviations
forecasts = {}
print("Forecast of three years        RMSE   seasonal naive   coverage of 90 % bands")
for name, (x, period, _, parameters, _) in SERIES.items():
    n_ahead = 3 * period
    known, future = x[:-n_ahead], x[-n_ahead:]
    model = new_model(known, parameters).fit(known[:, None])
    mean, std = (part[:, 0] for part in model.forecast(known[:, None], n_ahead))
    naive = seasonal_naive(np.r_[known, np.full(n_ahead, np.nan)], period)[-n_ahead:]
    observed = ~np.isnan(future)
    inside = np.abs(future - mean)[observed] < BAND * std[observed]
    print(
        f"  {name:25s} {rmse(future, mean, observed):7.2f} {rmse(future, naive, observed):16.2f} "
        f"{inside.mean():24.2f}"
    )
    forecasts[name] = mean, std

# %%
# Impute
# ------
# A fifth of each series is removed, in stretches of a quarter to one and a half years, and filled
# from what is left. Draws from the posterior give the bands.


def removed_steps(n_steps, period, random_state):
    """Mask of stretches, none of which touches another, or the first or last step."""
    rng = np.random.default_rng(random_state)
    removed = np.zeros(n_steps, dtype=bool)
    while removed.sum() < 0.2 * n_steps:
        length = rng.integers(period // 4, 3 * period // 2 + 1)
        first = rng.integers(1, n_steps - length)
        if not removed[first - 1 : first + length + 1].any():
            removed[first : first + length] = True
    return removed


imputations = {}
print("\nRMSE of imputation            SVAE   interpolation   seasonal naive   coverage")
for name, (x, period, _, parameters, _) in SERIES.items():
    removed = removed_steps(len(x), period, random_state=0)
    with_gaps = np.where(removed, np.nan, x)
    model = new_model(x, parameters).fit(with_gaps[:, None])
    filled = model.impute(with_gaps[:, None])[:, 0]
    draws = model.impute(with_gaps[:, None], n_draws=400)[..., 0]
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    step, known = np.arange(len(x)), ~np.isnan(with_gaps)
    interpolated = np.interp(step, step[known], x[known])
    measured = removed & ~np.isnan(x)
    coverage = np.mean((low <= x)[measured] & (x <= high)[measured])
    errors = [
        rmse(x, estimate, removed)
        for estimate in (filled, interpolated, seasonal_naive(with_gaps, period))
    ]
    print(f"  {name:25s} {errors[0]:6.2f} {errors[1]:15.2f} {errors[2]:16.2f} {coverage:10.2f}")
    imputations[name] = removed, filled, low, high

# %%
# See it
# ------
# Imputation on the left, of the years with most removed; on the right the last years before the
# forecast, and the three that were forecast.
figure, axes = plt.subplots(2, 2, figsize=(11, 6), layout="constrained")
for row, (name, (x, period, end, _, label)) in zip(axes, SERIES.items(), strict=True):
    year = end + (np.arange(len(x)) - len(x)) / period
    removed, filled, low, high = imputations[name]
    n_shown = 8 * period
    counts = np.convolve(removed, np.ones(min(n_shown, len(x))), mode="valid")
    shown = slice(counts.argmax(), counts.argmax() + n_shown)
    row[0].plot(year[shown], np.where(removed, np.nan, x)[shown], color="black", lw=1, label="kept")
    row[0].plot(
        year[shown], np.where(removed, x, np.nan)[shown], color="tab:red", lw=1, label="removed"
    )
    masked = np.where(removed, filled, np.nan)
    row[0].plot(year[shown], masked[shown], color="tab:blue", lw=1, label="imputed")
    row[0].fill_between(
        year[shown], low[shown], high[shown], where=removed[shown], color="tab:blue", alpha=0.25
    )
    row[0].set_ylabel(label)

    mean, std = forecasts[name]
    recent, ahead = slice(len(x) - 8 * period, None), slice(len(x) - len(mean), None)
    row[1].plot(year[recent], x[recent], color="black", lw=1, label="observed")
    row[1].plot(year[ahead], mean, color="tab:blue", lw=1, label="forecast")
    row[1].fill_between(
        year[ahead], mean - BAND * std, mean + BAND * std, color="tab:blue", alpha=0.25
    )
for axis, title in zip(axes[0], ("Imputation, with 90 % bands", "Forecast"), strict=True):
    axis.set_title(title)
    axis.legend(loc="lower left", fontsize=8)
for axis in axes[1]:
    axis.set_xlabel("year")
figure.savefig("forecast_and_impute.png", dpi=120)
print("The figure is in forecast_and_impute.png")
