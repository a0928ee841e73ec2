# SPDX-License-Identifier: BSD-3-Clause
r"""
Forward-backward and Viterbi: the dishonest casino
==================================================

A casino rolls a fair die, and now and then for a while a loaded one. Which when? There are
:math:`K^T` histories, too many to list; but states depend on their neighbours only, so that sums
over all histories can be done one step at a time. For ten rolls both can be done, and compared.
"""

# %%
# Ten rolls, by brute force
# ---------------------------
# Every history has a log weight. Their sum is the evidence, sums over those in which state k is
# visited at step t are the marginals, and the largest one is the most probable path.
import itertools
import os

import numpy as np
import torch

from sksvae.inference import markov_moments, most_probable_path
from sksvae.plotting import SegmentationDisplay

quick = os.environ.get("SKSVAE_EXAMPLE_QUICK") == "1"
torch.set_default_dtype(torch.float64)
log_initial = torch.tensor([0.5, 0.5]).log()
log_transition = torch.tensor([[0.95, 0.05], [0.10, 0.90]]).log()
log_rolls = torch.tensor([[1 / 6] * 6, [0.1] * 5 + [0.5]]).log().T  # of shape (6, 2)

rolls = torch.tensor([2, 4, 1, 3, 5, 2, 6, 6, 6, 6]) - 1
likelihood = log_rolls[rolls]
histories = torch.tensor(list(itertools.product(range(2), repeat=len(rolls))))
weights = log_initial[histories[:, 0]] + log_transition[histories[:, :-1], histories[:, 1:]].sum(1)
weights += likelihood[torch.arange(len(rolls)), histories].sum(1)
probabilities = weights.softmax(0)

likelihood.requires_grad_()
chain = markov_moments(log_initial, log_transition, likelihood)
path, path_weight = most_probable_path(log_initial, log_transition, likelihood)
(gradient,) = torch.autograd.grad(chain.log_normalizer, likelihood)
best = int(weights.argmax())
by_messages = float(chain.log_normalizer), float((path_weight - chain.log_normalizer).exp())
print(f"{len(histories)} histories             enumerated      by messages")
print(f"log evidence        {float(weights.logsumexp(0)):16.12f} {by_messages[0]:16.12f}")
paths = ("".join(str(int(k)) for k in states) for states in (histories[best], path))
print("best path           " + " ".join(f"{states:>16s}" for states in paths))
print(f"its probability     {float(probabilities[best]):16.12f} {by_messages[1]:16.12f}")
enumerated = probabilities @ histories.double()
print("P(loaded), enumerated  " + " ".join(f"{p:.4f}" for p in enumerated))
print("           by messages " + " ".join(f"{p:.4f}" for p in chain.marginals[:, 1]))
print("           gradient    " + " ".join(f"{p:.4f}" for p in gradient[:, 1]))

# %%
# The last line is no accident: the gradient of the log evidence in the log likelihoods *is* the
# marginals. Whoever can compute a sum and its gradient has done forward-backward.
#
# A long evening
# --------------
# Now with too many histories, and the truth known. Two ways to say one sequence of states: the most
# probable path, and at each step the most probable state.
T = 100 if quick else 400
rng = np.random.default_rng(3)
truth = np.zeros(T, dtype=int)
for t in range(1, T):
    truth[t] = rng.random() < float(log_transition[truth[t - 1], 1].exp())
rolls = np.array([rng.choice(6, p=log_rolls[:, k].exp().numpy()) for k in truth])
problem = log_initial, log_transition, log_rolls[rolls]
chain = markov_moments(*problem)
loaded = chain.marginals[:, 1].numpy()
answers = {
    "most probable path": most_probable_path(*problem)[0].numpy(),
    "most probable states": (loaded > 0.5).astype(int),
    "each roll alone": (rolls == 5).astype(int),
    "truth": truth,
}


def log_probability(states):
    """Log probability of a history, given the rolls."""
    states = torch.as_tensor(states)
    value = log_initial[states[0]] + log_transition[states[:-1], states[1:]].sum()
    return float(value + problem[2][torch.arange(T), states].sum() - chain.log_normalizer)


print(f"\n{T} rolls                right, expected  right  changes  log probability")
for name, states in answers.items():
    expected = np.where(states == 1, loaded, 1 - loaded).mean()
    print(
        f"{name:24s} {expected:12.1%} {(states == truth).mean():9.1%} "
        f"{np.abs(np.diff(states)).sum():8d} {log_probability(states):16.1f}"
    )
print(f"Expected number of changes: {float(chain.pair_counts[0, 1] + chain.pair_counts[1, 0]):.1f}")

# %%
# What to see
# -----------
# Neighbours help: a six alone says little, and calling every six loaded changes die 124 times. The
# most probable states are right most often, as they are made to be, and as forward-backward expects
# without knowing the truth. The most probable path is right less often and by far the most probable
# history, but it is no typical one: it has 6 changes where 25 are expected, and the true history is
# less probable by a factor of exp(50). A mode is not a sample. For how often and how long, ask the
# expected counts; for one consistent story, the path; for single steps, the marginals. Ticks below
# the curve are sixes.
display = SegmentationDisplay.from_predictions(
    answers["most probable path"],
    X=loaded[:, None],
    y_true=truth,
    n_states=2,
    feature_names=["P(loaded)"],
    display_labels=["fair", "loaded"],
    time_label="roll",
)
sixes = np.flatnonzero(rolls == 5)
display.ax_.plot(sixes, np.full(len(sixes), -0.1), "|", color="k", markersize=4)
display.figure_.set_size_inches(9, 3.4)
display.figure_.savefig("forward_backward.png", dpi=120)
print("The figure is in forward_backward.png")
torch.set_default_dtype(torch.float32)  # as before, for what runs next
