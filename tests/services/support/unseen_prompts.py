"""Prompts whose answers share no long run of tokens with what a draft learned, and how other drafters do on them.

Both lists are places in ``shuffled``, chosen once by the target's own greedy answers from transformers: of those to SQL none
has a run of 14 tokens in common with the prompts and answers that ``test_served_llm.py`` teaches, of those to chat none of 20,
since that target says much the same to whoever chats. Whoever changes what is taught there chooses anew; the test looks.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from answered import prompts

POOL = 4000  # prompts of each domain
RUN = 20  # tokens in a row
Ran = frozenset[tuple[int, ...]]

UNSEEN = {
    "sql": (
        600, 603, 604, 607, 610, 612, 617, 618, 623, 625, 626, 627, 631, 633, 634, 640, 641, 643, 644, 645, 646, 647, 649,
        651, 652, 654, 656, 658, 660, 661, 662, 664, 665, 666, 667, 668, 669, 673, 674, 675, 677, 678, 679, 680, 681, 682,
        684, 685, 686, 687, 688, 690, 691, 694, 695, 696, 698, 701, 703, 704, 706, 708, 709, 711, 712, 713, 714, 715, 716,
        718, 720, 722, 727, 730, 732, 734, 742, 745, 746, 747, 749, 750, 752, 755, 756, 757, 760, 763, 764, 765, 767, 768,
        769, 774, 775, 778, 779, 780, 781, 783, 784, 786, 788, 791, 792, 795, 796, 798, 799, 800, 801, 802, 803, 804, 807,
        810, 811, 812, 815, 816, 819, 820, 822, 823, 824, 825, 826, 829, 830, 832, 833, 834, 835, 837, 840, 843, 844, 845,
        846, 847, 848, 849, 851, 852, 853, 855, 856, 858, 859, 860, 863, 864, 865, 867, 871, 874, 875, 877, 878, 880, 882,
        883, 885, 887, 890, 891, 893, 894, 895, 898, 900, 902, 905, 906, 907, 908, 910, 911, 912, 913, 914, 915, 916, 918,
    ),
    "chat": (
        100, 103, 109, 115, 118, 122, 124, 132, 134, 137, 138, 140, 141, 142, 147, 150, 152, 157, 176, 177, 178, 179, 185,
        192, 193, 194, 199, 200, 203, 204, 207, 210, 211, 213, 215, 216, 218, 222, 226, 229, 238, 240, 243, 248, 249, 251,
        256, 261, 262, 271, 275, 280, 283, 285, 288, 289, 290, 291, 294, 302, 303, 309, 311, 317,
    ),
}  # fmt: skip


@cache
def shuffled(domain: str) -> list[str]:
    """Prompts in an order of their own: neighbours of the data set ask about the same tables."""
    texts = prompts(domain, POOL)
    random.Random(1).shuffle(texts)
    return texts


def unseen(domain: str) -> list[str]:
    """Those whose answers share nothing with what is learned."""
    return [shuffled(domain)[place] for place in UNSEEN[domain]]


def runs(tokens: Sequence[int]) -> Ran:
    """Every RUN tokens in a row."""
    return frozenset(tuple(tokens[start : start + RUN]) for start in range(len(tokens) - RUN + 1))


def looked_up(answered: Iterable[tuple[Sequence[int], Sequence[int]]], k: int) -> float:
    """Tokens a step of vLLM's ``ngram`` on prompts and their greedy answers, by the function that its engine calls.

    It looks for the last two to four tokens in what stands before; a step in which it finds nothing gives one token.
    """
    from vllm.v1.spec_decode.ngram_proposer import _find_longest_matched_ngram_and_propose_tokens as find

    steps = accepted = 0
    for prompt, answer in answered:
        at = 1  # the first token comes of the prompt's own pass
        while at < len(answer):
            proposed = find(np.array([*prompt, *answer[:at]], np.int32), 2, 4, 1024, k).tolist()
            hits = [mine == right for mine, right in zip(proposed, answer[at:], strict=False)]
            gained = [*hits, False].index(False)
            steps, accepted, at = steps + 1, accepted + gained, at + gained + 1
    return 1.0 + accepted / steps
