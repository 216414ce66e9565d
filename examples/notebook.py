"""A pipeline from Python: build it, append rows, learn, ask, look at scores and versions, roll back, verify.

Run it as a script, or cell by cell: `python examples/notebook.py` needs the extra `demo`, which `make setup` brings.
"""

# %% Build a pipeline. Its state lies under ./.millrace/notebook, as a command's would.
from sklearn.datasets import load_digits

from millrace.services.api import Field, Label, Pipeline

digits = Pipeline.build(
    "notebook",
    fields=[Field("x", size=64, scale=16.0)],
    label=Label("digit", "integer"),
    learner="ridge",
    settings={"learner.expand": 512, "learner.solve_rows": 64, "batch.rows": 32, "worker.version_rows": 500},
)

# %% Append rows to its log: mappings here; a pandas or polars DataFrame or an Arrow table does as well.
pixels, names = load_digits(return_X_y=True)
rows = [{"x": image, "digit": name} for image, name in zip(pixels, names, strict=True)]
print("appended", digits.append(rows[:1000], headers={"producer": "notebook"}))

# %% Learn to the log's end. Every row is answered first and learned after, so the scores are honest.
print("learned", digits.learn())
print("accuracy", round(digits.scores().accuracy, 3), "recall of 8:", round(digits.scores().recall["8"], 3))

# %% Ask. Which state answered stands beside the labels.
answers = digits.predict(rows[1000:])
right = sum(label == str(name) for label, name in zip(answers.labels, names[1000:], strict=True))
print(f"{right} of {len(answers.labels)} right, says {answers.version}")

# %% A producer labels wrongly, and it is learned.
digits.append([{"x": row["x"], "digit": 7} for row in rows[1000:1400]], headers={"producer": "careless"})
poisoned = digits.learn().version
print("of", poisoned, "now:", digits.predict(rows[1400:1410]).labels)

# %% Roll back to the version before. The ledger keeps the reason; learning could go on.
good = answers.version
print(digits.roll_back("400 rows labelled 7", good))
print("served again:", digits.predict(rows[1400:1410]).labels)

# %% Fold the whole log again and compare every version.
for version in digits.versions():
    print(version.version, version.learned, "rows", version.aliases, version.served_by)
print("proved", [proof.proved for proof in digits.verify()], "at", digits.status().lag_rows, "rows behind")
