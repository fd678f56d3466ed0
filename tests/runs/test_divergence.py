"""Steps that diverge: named, kept, taken again, and skipped where the search shall go on."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pamkd.cli import main
from pamkd.runs import checkpoint
from pamkd.runs.bundle import BUNDLE
from pamkd.runs.config import SearchConfig
from pamkd.runs.folder import CHECKPOINT
from pamkd.runs.search import MAX_SKIPPED, Search
from pamkd.runs.search_state import SearchState
from pamkd.trilevel.finite import Diverged

NAN = float("nan")


def config_of(tiny, out, **options):
    return SearchConfig(out=out, tensorboard=False, **tiny | options)


def plant(monkeypatch, step, entries, value):
    """A value in weights V of learner 1, just before the step of that number."""
    take = SearchState.take

    def planted(self, inputs):
        if inputs.number == step:
            self.learners[1].v = self.learners[1].v.clone().index_fill(0, torch.tensor(entries), value)
        return take(self, inputs)

    monkeypatch.setattr(SearchState, "take", planted)


def test_stop_names_the_place_and_replay_finds_it_again(pictures, tiny, tmp_path, monkeypatch, capsys):
    plant(monkeypatch, 4, [7], NAN)
    with pytest.raises(Diverged, match=r"epoch 2 step 1: the loss of learner 1 in pass v_train is nan.*pamkd replay .*divergence"):
        Search(config_of(tiny, tmp_path / "run")).run(*pictures)
    monkeypatch.undo()
    assert main(["replay", str(tmp_path / "run" / BUNDLE)]) == 0
    said = capsys.readouterr().out
    assert "epoch 2 step 1 (search): the loss of learner 1 in pass v_train is nan" in said and "as in the search" in said


def test_replay_says_when_nothing_is_wrong(pictures, tiny, tmp_path, monkeypatch, capsys):
    plant(monkeypatch, 1, [7], NAN)
    with pytest.raises(Diverged):
        Search(config_of(tiny, tmp_path / "run")).run(*pictures)
    tensors, meta = checkpoint.load(tmp_path / "run" / BUNDLE)
    checkpoint.save(tmp_path / "mended", {name: tensor.nan_to_num() for name, tensor in tensors.items()}, meta)
    monkeypatch.undo()
    assert main(["replay", str(tmp_path / "mended")]) == 1
    assert "nothing diverged, training losses" in capsys.readouterr().out


def test_skipped_steps_change_nothing(pictures, tiny, tmp_path):
    """An image of NaN: the steps that meet it are skipped, and the search is the one that never took them."""
    train, valid = pictures
    train.tensors[0][3] = NAN
    result = Search(config_of(tiny, tmp_path / "run", on_divergence="skip")).run(train, valid)
    rows = {kind: [row for row in result.history if row["kind"] == kind] for kind in ("skip", "step", "epoch")}
    assert 1 <= len(rows["skip"]) <= 2 and len(rows["skip"]) + len(rows["step"]) == 6
    assert sum(row["skipped"] for row in rows["epoch"]) == len(rows["skip"])
    assert all("loss of learner 0 in pass v_train is nan" in row["why"] for row in rows["skip"])
    for row in rows["epoch"]:
        taken = [step["train_loss"] for step in rows["step"] if step["epoch"] == row["epoch"]]
        assert row["train_loss"] == pytest.approx(torch.tensor(taken, dtype=torch.float64).mean(0).tolist())
    for learner in result.learners:
        assert all(bool(torch.isfinite(tensor).all()) for tensor in learner.tensors.values())


@pytest.mark.parametrize("method", ["pamkd", "okddip"])
def test_a_skipped_step_leaves_the_state_bit_for_bit(method, pictures, tiny, tmp_path, monkeypatch):
    options = {} if method == "pamkd" else {"method": method, "learners": 3, "group_size": None, "group_pairs": None}
    states = []
    take = SearchState.take

    def copied(self):
        return {name: tensor.nan_to_num() for name, tensor in self.snapshot()[0].items()}

    def spy(self, inputs):
        before = copied(self)
        if inputs.number == 2:
            inputs = inputs._replace(valid=inputs.valid._replace(images=inputs.valid.images * NAN))
        try:
            return take(self, inputs)
        except Diverged:
            states.append((before, copied(self)))
            raise

    monkeypatch.setattr(SearchState, "take", spy)
    Search(config_of(tiny, tmp_path / "run", on_divergence="skip", **options)).run(*pictures)
    ((before, after),) = states
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def test_a_lost_search_ends_in_spite_of_skipping(pictures, tiny, tmp_path):
    train, valid = pictures
    train.tensors[0][:] = NAN
    config = config_of(tiny | {"epochs": 8}, tmp_path / "run", on_divergence="skip", method="plain", group_size=None, group_pairs=None)
    with pytest.raises(Diverged, match=f"{MAX_SKIPPED} steps were skipped one after the other"):
        Search(config).run(train, valid)


def test_a_stopped_search_resumes_with_skipping(pictures, tiny, tmp_path):
    train, valid = pictures
    train.tensors[0][3] = NAN
    config = config_of(tiny, tmp_path / "run")
    with pytest.raises(Diverged):
        Search(config).run(train, valid)
    skipping = Search(dataclasses.replace(config, on_divergence="skip", resume=True)).run(train, valid)
    assert skipping.history[-1]["epoch"] == 1
    _, meta = checkpoint.load(tmp_path / "run" / CHECKPOINT)
    assert meta["epoch"] == 2


def test_a_loss_far_above_all_others_is_divergence(pictures, tiny, tmp_path, monkeypatch):
    plant(monkeypatch, 1, list(range(-24, -16)), 1e6)  # weights of the classifier
    with pytest.raises(Diverged, match=r"the loss of learner 1 in pass v_train is \d"):
        Search(config_of(tiny, tmp_path / "run")).run(*pictures)


def test_replay_refuses_what_is_no_bundle(tmp_path, capsys, pictures, tiny):
    Search(config_of(tiny | {"epochs": 1}, tmp_path / "run")).run(*pictures)
    for path, said in ((tmp_path / "none", "there is no bundle"), (tmp_path / "run" / CHECKPOINT, "is a checkpoint, no step")):
        assert main(["replay", str(path)]) == 2
        assert said in capsys.readouterr().err
