from pathlib import Path

import pytest
import torch
from torch import Tensor

from plmsae.saes import build, trainable_architectures
from plmsae.saes.dictionary import Dictionary
from plmsae.training.checkpoint import latest_checkpoint
from plmsae.training.loop import train
from plmsae.training.member import Member, Plan
from plmsae.training.resampling import new_directions
from tests.training.streams import D_MODEL, Rows, activations, small_config, small_settings
from tests.training.test_architectures import CONFIGS, SETTINGS, Interrupted

every = pytest.mark.parametrize("architecture", trainable_architectures())
DEAD = torch.tensor([3, 5, 40])


def resample(sae: Dictionary, source: Rows, latents: torch.Tensor, num_rows: int, generator: torch.Generator) -> None:
    directions = new_directions(sae, source, latents, num_rows, generator)
    if directions is not None:
        sae.revive(latents, directions)


def built(architecture: str = "relu") -> Dictionary:
    torch.set_num_threads(1)
    sae = build(small_config(architecture=architecture, **CONFIGS[architecture]), seed=2)
    assert isinstance(sae, Dictionary)
    sae.initialise(torch.Generator().manual_seed(2), activations(500).mean(0))
    return sae


@every
def test_a_revived_latent_points_at_a_row_and_the_others_stay(architecture: str) -> None:
    sae = built(architecture)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    sae.constrain_weights()
    before = {name: parameter.detach().clone() for name, parameter in sae.named_parameters()}
    x = activations(2000)
    resample(sae, Rows(x, 256), DEAD, 2000, torch.Generator().manual_seed(0))
    others = torch.ones(64, dtype=torch.bool)
    others[DEAD] = False
    for name, parameter in sae.named_parameters():
        kept = others if len(parameter) == 64 else slice(None)
        assert torch.equal(parameter[kept], before[name][kept]), name
    # Along a row, with the norms of the others; a fifth of them in the encoder.
    cosine = torch.nn.functional.cosine_similarity(sae.W_dec[DEAD].unsqueeze(1), (x - sae.b_dec).unsqueeze(0), dim=2)
    torch.testing.assert_close(cosine.amax(1), torch.ones(3))
    assert len(set(cosine.argmax(1).tolist())) == 3
    atoms, rows = before["W_dec"][others].norm(dim=1).mean(), before["W_enc"][others].norm(dim=1).mean()
    torch.testing.assert_close(sae.W_dec[DEAD].norm(dim=1), atoms.expand(3))
    torch.testing.assert_close(sae.W_enc[DEAD].norm(dim=1), 0.2 * rows.expand(3))
    # On that row the revived latent's pre-activation is its length along it, whatever the biases of the architecture.
    found = x[cosine.argmax(1)]
    taken_off = sae.b_dec if sae.pre_bias else torch.zeros(D_MODEL)
    bias = sae.b_enc[DEAD] if "b_enc" in sae.encoder_biases else sae.b_gate[DEAD]  # type: ignore[index]
    pre = ((found - taken_off) * sae.W_enc[DEAD]).sum(1) + bias
    torch.testing.assert_close(pre, 0.2 * rows * (found - sae.b_dec).norm(dim=1))


def test_rows_are_drawn_by_the_square_of_their_loss() -> None:
    """Errors 1, 2 and 3 in norm: losses 1, 4, 9; draws in proportion to 1, 16, 81."""
    sae = built()
    with torch.no_grad():
        sae.b_dec.zero_()
        sae.b_enc.fill_(-100.0)  # nothing fires: a row is its own error
    x = torch.zeros(3, D_MODEL)
    x[0, 0], x[1, 1], x[2, 2] = 1.0, 2.0, 3.0
    counts = torch.zeros(3)
    for seed in range(2000):
        with torch.no_grad():
            sae.b_enc.fill_(-100.0)
        resample(sae, Rows(x, 3), DEAD[:1], 3, torch.Generator().manual_seed(seed))
        counts[int(sae.W_dec[3].argmax())] += 1
    wanted = torch.tensor([1.0, 16.0, 81.0]) / 98
    assert torch.allclose(counts / 2000, wanted, atol=4 * 0.5 / 2000**0.5 * 0.9)
    assert counts[0] < counts[1] < counts[2]


def test_more_dead_latents_than_rows_and_nothing_to_explain() -> None:
    sae = built()
    resample(sae, Rows(activations(2), 2), torch.arange(10), 2, torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(sae.W_dec).all())
    before = sae.W_dec.detach().clone()
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    resample(sae, Rows(sae.b_dec.detach().expand(8, -1).clone(), 8), DEAD, 8, torch.Generator().manual_seed(0))
    assert torch.equal(sae.W_dec, before)


# So wide a dictionary and so few latents that many are dead by step 150.
WIDE = {
    "relu": {"k": 256, "penalty": 0.6},
    "batch_topk": {"k": 2, "aux_alpha": 0.0},
    "jump_relu": {"k": 256, "target_l0": 1, "penalty": 5.0, "bandwidth": 0.1, "initial_threshold": 0.1},
}


def run(checkpoints: Path, architecture: str, stop: int = 10**9, **changes: object) -> dict[str, Tensor]:
    torch.set_num_threads(1)
    wanted = {
        "penalty_warmup_fraction": 0.0,
        "dead_after_tokens": 10 * 256,
        "resample_steps": (150, 180),
        "num_resample_rows": 1000,
    }
    settings = small_settings(**{**SETTINGS, **wanted, **changes})
    source = Interrupted(activations(8000), settings.batch_size)
    source.stop = stop
    config = small_config(architecture=architecture, dictionary_size=256, **WIDE[architecture])
    trained = train(config, "auto", source, Rows(activations(2000, seed=1), 256), settings, checkpoints)
    return trained.sae.state_dict()


@pytest.mark.parametrize("architecture", sorted(WIDE))
def test_a_resumed_training_draws_and_anneals_alike(architecture: str, tmp_path: Path) -> None:
    changes = {"anneal_fraction": 0.75, "anneal_from": 16} if architecture == "batch_topk" else {}
    whole = run(tmp_path / "whole", architecture, **changes)
    plain = run(tmp_path / "plain", architecture, **changes, resample_steps=())
    assert not torch.equal(whole["W_dec"], plain["W_dec"])  # latents were dead and started anew
    for stop in (100, 150):
        folder = tmp_path / f"from{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(folder, architecture, stop, **changes)
        found = latest_checkpoint(folder)
        assert found is not None
        assert found.step == stop
        resumed = run(folder, architecture, **changes)
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_annealing_selects_more_latents_at_first_and_k_in_the_end(tmp_path: Path) -> None:
    run(tmp_path, "batch_topk", resample_steps=(), anneal_fraction=0.5, anneal_from=16)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    # k falls from 16 to 2 over 100 steps: 14/100 a step, means over the 40 steps before each row of the curves.
    assert [row["l0"] for row in found.info["members"][0]["curves"]] == pytest.approx([13.3, 7.7, 2.9, 2, 2], abs=0.2)


def test_silent_latents_fire_again_and_learn() -> None:
    sae, x = built(), activations(4000)
    silent = torch.arange(64) < 16
    with torch.no_grad():
        sae.b_enc[silent] = -100.0
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)

    def steps(num_steps: int) -> tuple[float, Tensor]:
        for step in range(num_steps):
            optimizer.zero_grad()
            sae.loss(x[torch.arange(step * 256, step * 256 + 256) % len(x)]).total.backward()  # type: ignore[no-untyped-call]
            sae.constrain_gradients()
            optimizer.step()
            sae.constrain_weights()
        terms = sae.loss(x)
        return float(terms.total), terms.counts[silent]

    before, counts = steps(150)
    assert not counts.any()
    resample(sae, Rows(x, 256), silent.nonzero().flatten(), 4000, torch.Generator().manual_seed(0))
    assert bool((sae.loss(x).counts[silent] > 0).all())
    after, counts = steps(150)
    assert int((counts > 0).sum()) >= 12
    assert after < before


def test_moments_of_revived_latents_start_at_zero() -> None:
    sae = built()
    member = Member(Plan(sae.config, small_settings()), sae, variance=1.0)
    sae.loss(activations(50)).total.backward()  # type: ignore[no-untyped-call]
    member.optimizer.step()
    member.tokens_since_fired.fill_(9)
    state = member.optimizer.state
    before = {name: state[parameter]["exp_avg"].clone() for name, parameter in sae.named_parameters()}
    member.forget(DEAD)
    for name, parameter in sae.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            assert name == "b_dec" or not state[parameter][moment][DEAD].any()
        assert torch.equal(state[parameter]["exp_avg"][6:30], before[name][6:30])
    assert (member.tokens_since_fired == 0).nonzero().flatten().tolist() == DEAD.tolist()
