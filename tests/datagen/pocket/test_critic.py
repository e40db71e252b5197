"""Each side of the critic's game is moved by its own terms only, and the critic learns to tell."""

import torch

from datagen.pocket.critic import Critic, compare


def _pictures(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_terms_move_one_side_each() -> None:
    critic, found = Critic((8, 16)), _pictures(0).requires_grad_()
    terms = compare(critic, found, _pictures(1))
    terms["critic"].backward(retain_graph=True)
    assert found.grad is None
    assert all(parameter.grad is not None for parameter in critic.parameters())

    critic.zero_grad(set_to_none=True)
    (terms["realism"] + terms["matching"]).backward()
    assert found.grad is not None
    assert found.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_equal_pictures_match() -> None:
    assert compare(Critic((8, 16)), _pictures(0), _pictures(0))["matching"].item() == 0.0


def test_a_critic_learns_to_tell_blurred_from_sharp() -> None:
    torch.manual_seed(0)
    critic, sharp = Critic((8, 16)), _pictures(0)
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=3e-3)
    for _ in range(60):
        loss = compare(critic, blurred, sharp)["critic"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert critic(sharp).verdict.mean() > 0 > critic(blurred).verdict.mean()
