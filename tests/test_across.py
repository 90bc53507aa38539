"What a profile says of a plate that nothing was learnt from, against scikit-learn and SciPy"
import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from integrated_cell.profiling.across import held_out_scores, plate_agreement
from integrated_cell.results import BadInput


def test_agreement_is_what_scikit_learn_and_scipy_say():
    rng = np.random.default_rng(0)
    plates, truth = np.repeat(["a", "b", "c"], 80), rng.random(240) < .4
    score, dose = rng.standard_normal(240).round(1) + truth, rng.choice([.1, .3, 1.], 240)
    found = plate_agreement(score, truth, plates, n_boot=300)
    assert np.allclose([*found["by_plate"].values()], [roc_auc_score(truth[plates == p], score[plates == p]) for p in "abc"])
    assert np.allclose([*plate_agreement(score, dose, plates, n_boot=2)["by_plate"].values()], [spearmanr(score[plates == p], dose[plates == p])[0] for p in "abc"])
    se = (found["high"] - found["low"])/3.92
    assert .015 < se < .05, "three plates of 80 cells"
    lone = truth.copy(); lone[plates == "a"] = True
    assert set(plate_agreement(score, lone, plates, n_boot=2)["by_plate"]) == {"b", "c"}


def test_fields_are_drawn_whole():
    rng = np.random.default_rng(0)
    fields, plates = np.repeat(np.arange(24), 20), np.repeat(["a", "b"], 240)
    truth = fields % 2 == 0
    score = rng.standard_normal(24)[fields] + .1*rng.standard_normal(480) + truth
    wide, narrow = (plate_agreement(score, truth, plates, g, 300) for g in (fields, None))
    assert wide["value"] == narrow["value"] and wide["high"] - wide["low"] > 2*(narrow["high"] - narrow["low"])


def test_a_held_out_plate_teaches_nothing():
    rng = np.random.default_rng(0)
    plates, truth = np.repeat(["a", "b", "c"], 50), rng.random(150) < .5
    x = rng.standard_normal((150, 5)); x[:, 0] += truth
    score = held_out_scores(x, truth, plates)
    again = held_out_scores(x, np.where(plates == "a", ~truth, truth), plates)
    assert np.array_equal(score[plates == "a"], again[plates == "a"]) and not np.array_equal(score[plates == "b"], again[plates == "b"])
    assert np.isnan(held_out_scores(x, truth & (plates == "a"), plates)[plates == "a"]).all()
    for bad, says in (((x[:9], truth, plates), "9 rows of features"), ((np.where(x > 2, np.nan, x), truth, plates), "not finite")):
        with pytest.raises(BadInput, match=says): held_out_scores(*bad)
