"""How good a learner is: prequential scores, and what it kept and lost while it went on."""
