"""An error memory around any learner: what was answered for recent rows, and what came, corrects what is answered now."""
