# ask.py
"""Ask a language model, line by line."""

import sys

from openai import OpenAI

domain, address = sys.argv[1], sys.argv[2]
client = OpenAI(base_url=f"{address}/v1", api_key="none", default_headers={"millrace-domain": domain})
for line in sys.stdin:
    prompt = f"<|user|>{line.strip()}<|assistant|>"
    answer = client.completions.create(model="answers", prompt=prompt, max_tokens=40, temperature=0)
    print(answer.choices[0].text)
