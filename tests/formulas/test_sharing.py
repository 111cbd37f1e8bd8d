"""Who shares what, on groups small enough to draw by hand."""

from __future__ import annotations

import pytest
import torch

from burnish.formulas import sharing


def test_independent_samples_lead_themselves():
    leader, drawn = sharing.tree(3, 4, (0, 2), (), False)
    assert leader.tolist() == [[i] * 5 for i in range(3)]
    assert drawn.tolist() == [[True, False, True, False]] * 3


def test_candidates_by_hand():
    """Two ways of three samples, that part in steps 0 and 2 of 3 and go on from samples 2 and 0, and from 1 and 1."""
    leader = sharing.lanes(3, 3, (0, 2), torch.tensor([[2, 0], [1, 1]]))
    assert leader.T.tolist() == [[0] * 3 + [3] * 3, [2] * 3 + [4] * 3, [0] * 3 + [3] * 3, [0] * 3 + [4] * 3]
    author = sharing.authors(leader, 3, (0, 2))
    assert author.T.tolist() == [[0, 1, 2, 3, 4, 5], [0] * 3 + [3] * 3, [0, 1, 2, 3, 4, 5]]
    assert sharing.evaluations(leader, sharing.visited(6, 3, ())).tolist() == [1.0] * 6  # three for each three


def test_what_is_not_a_candidate_is_drawn_by_the_leader_of_what_follows():
    leader, _ = sharing.tree(4, 3, (0, 1, 2), ((0, 2), (2, 2)), False)
    assert torch.equal(sharing.authors(leader, 1, (0, 1, 2)), leader[:, 1:])


def test_a_shared_start_lasts_until_the_first_random_step():
    leader, _ = sharing.tree(3, 4, (1, 2), (), True)
    assert leader.tolist() == [[0, 0, i, i, i] for i in range(3)]


def test_a_shared_start_without_random_steps_never_parts():
    leader, drawn = sharing.tree(3, 4, (), (), True)
    assert not leader.any() and not drawn.any()


def test_a_tree_by_hand():
    """Forks before steps 0 and 2 of 3: state 0 is one, states 1 and 2 are two, the picture is four."""
    leader, drawn = sharing.tree(4, 3, (0, 1, 2), ((0, 2), (2, 2)), False)
    assert leader.T.tolist() == [[0, 0, 0, 0], [0, 0, 2, 2], [0, 0, 2, 2], [0, 1, 2, 3]]
    assert drawn.all()


def test_forks_may_be_named_in_any_order():
    forwards = sharing.tree(6, 3, (0, 1), ((0, 3), (1, 2)), False)
    backwards = sharing.tree(6, 3, (0, 1), ((1, 2), (0, 3)), False)
    assert forwards[0].T.tolist() == [[0] * 6, [0, 0, 2, 2, 4, 4], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert torch.equal(forwards[0], backwards[0])


def test_two_trees_in_a_group():
    leader, _ = sharing.tree(4, 2, (0, 1), ((0, 2),), False)
    assert leader.T.tolist() == [[0, 0, 2, 2], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_two_trees_with_one_start_part_at_the_first_fork():
    leader, _ = sharing.tree(4, 3, (0, 1, 2), ((1, 2),), True)
    assert leader.T.tolist() == [[0] * 4, [0] * 4, [0, 1, 2, 3], [0, 1, 2, 3]]


def test_a_star_by_hand():
    """Two samples leave in step 0 and two in step 2; the last of them stand on the path until they leave."""
    leader, drawn = sharing.star(4, 3, (0, 2))
    assert leader.T.tolist() == [[2, 2, 2, 2], [0, 1, 2, 2], [0, 1, 2, 2], [0, 1, 2, 3]]
    assert drawn.tolist() == [[True, False, False]] * 2 + [[False, False, True]] * 2


def test_branches_may_be_named_in_any_order():
    leader, drawn = sharing.star(4, 3, (2, 0))
    assert leader.T.tolist() == [[0, 0, 0, 0], [0, 0, 2, 3], [0, 0, 2, 3], [0, 1, 2, 3]]
    assert drawn.tolist() == [[False, False, True]] * 2 + [[True, False, False]] * 2


FINE_AND_COARSE = ((0, 1, 2, 3, 4), (0, 1, 2, 4))


def test_a_star_on_two_grids_by_hand():
    """Samples 2 and 3 are 0 and 1 again, on a grid without state 3: they are the same until there."""
    leader, drawn = sharing.star(4, 4, (0,), FINE_AND_COARSE)
    assert leader.T.tolist() == [[0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert drawn.tolist() == [[True, False, False, False]] * 4
    seen = sharing.visited(4, 4, FINE_AND_COARSE)
    assert seen[:, 3].tolist() == [True, True, False, False]
    assert sharing.ends(seen).tolist() == [[1, 2, 3, 4]] * 2 + [[1, 2, 4, 4]] * 2
    assert sharing.evaluations(leader, seen).tolist() == [0.25 + 0.5 + 0.5 + 1] * 2 + [0.25 + 0.5 + 0.5] * 2


def test_two_branches_on_two_grids_by_hand():
    leader, _ = sharing.star(4, 4, (0, 1), (*FINE_AND_COARSE, (0, 1, 2, 3, 4), (0, 1, 2, 3, 4)))
    assert leader.T.tolist() == [[2, 2, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [0, 1, 2, 2], [0, 1, 2, 2]]


@pytest.mark.parametrize("leader, drawn", [
    sharing.tree(8, 6, (0, 1, 2, 3, 4), ((0, 2), (2, 2), (4, 2)), False),
    sharing.tree(8, 6, (1, 2, 3), (), True),
    sharing.star(8, 6, (0, 1, 3, 4)),
    sharing.star(8, 6, (0, 3), ((0, 1, 2, 3, 6), (0, 1, 4, 6), (0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 3, 4, 6))),
])  # fmt: skip
def test_leaders_are_consistent(leader, drawn):
    """A leader leads itself, those who part never meet again, and all who share a state move alike."""
    for state in range(leader.shape[1]):
        heads = leader[:, state]
        assert torch.equal(heads[heads], heads)
        if state:
            together = heads.unsqueeze(0) == heads.unsqueeze(1)
            before = leader[:, state - 1]
            assert (before.unsqueeze(0) == before.unsqueeze(1))[together].all()
            assert torch.equal(drawn[heads, state - 1], drawn[:, state - 1])


def test_evaluations_of_independent_samples_are_the_steps():
    assert sharing.evaluations(sharing.tree(3, 4, (0,), (), False)[0], sharing.visited(3, 4, ())).tolist() == [4, 4, 4]


def test_evaluations_of_a_tree_by_hand():
    """One at the first state, two at the second and third, shared by four leaves: 1/4 + 1/2 + 1/2 each."""
    leader, _ = sharing.tree(4, 3, (0, 1, 2), ((0, 2), (2, 2)), False)
    assert sharing.evaluations(leader, sharing.visited(4, 3, ())).tolist() == [1.25] * 4


def test_evaluations_of_a_star_by_hand():
    """The path has 3 states; samples 0 and 1 are alone for the last two, and sample 2 and 3 are never."""
    leader, _ = sharing.star(4, 3, (0, 2))
    found = sharing.evaluations(leader, sharing.visited(4, 3, ()))
    assert found.tolist() == [2.25, 2.25, 1.25, 1.25] and found.sum() == 3 + 2 + 2


def test_a_way_that_skips_states_by_hand():
    """0, 1, 2, 5, 6 of 6: nothing is evaluated at 3 and 4, and the step from 2 ends at 5. Two part at state 1."""
    seen = sharing.visited(2, 6, [(0, 1, 2, 5, 6)])
    assert seen.tolist() == [[True, True, True, False, False, True, True]] * 2
    assert sharing.ends(seen).tolist() == [[1, 2, 5, 5, 5, 6]] * 2
    leader, _ = sharing.tree(2, 6, (0,), (), True)
    assert sharing.evaluations(leader, seen).tolist() == [0.5 + 1 + 1 + 1] * 2
    assert sharing.ends(sharing.visited(1, 3, ())).tolist() == [[1, 2, 3]]
